-- What a script finds when Redis or Valkey runs it.
std = "lua51"
read_globals = { "redis", "server", "KEYS", "ARGV", "cjson", "cmsgpack", "bit", "struct" }
max_line_length = 120
