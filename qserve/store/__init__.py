"""Where calls and state are kept. The only room that speaks to Redis."""
