"""``bridge``: containers with addresses of their own on a bridge of the host, networks that users define, published ports."""
