"""Tests for machines with systemd and the unified control group hierarchy; contrib/vm starts one and runs them there."""
