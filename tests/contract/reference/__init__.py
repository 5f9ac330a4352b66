"""The plainest drivers that keep the contract: what the planted faults are made from."""
