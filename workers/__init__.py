"""Small applications to run and to copy from. Each says at its head how to run it; they import only public names."""
