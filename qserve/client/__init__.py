"""Who asks: handles, responses, and the core that carries their calls."""
