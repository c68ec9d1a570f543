"""What happens around the training steps: saving, showing, measuring."""
