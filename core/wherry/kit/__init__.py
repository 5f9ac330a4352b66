"""What drivers build on, bundled and foreign alike."""
