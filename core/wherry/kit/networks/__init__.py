"""What network drivers have in common: subnets and addresses, what networks and places are remembered, and routing netlink.

No driver needs any of it; one that gives out addresses by itself, or makes links, saves itself the trouble.
"""
