"""Networks, and the containers in them."""
