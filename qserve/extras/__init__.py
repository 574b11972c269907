"""What needs optional packages. Each module here says, when it is imported without its package, how to install it."""
