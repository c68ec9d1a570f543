"""Images: files and generated shapes, augmented on the device."""
