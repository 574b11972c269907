-- pending.lua: what one replica holds of a queue.
-- KEYS 1 queue.  ARGV 1 group, 2 replica, 3 most entries to tell.
-- Returns for each: entry id, attempt, envelope. Entries that somebody deleted are acknowledged.  Cost O(entries).
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[3], ARGV[2])
if held.err then return {} end
local found = {}
for _, row in ipairs(held) do
  local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
  if entry then
    local envelope, attempt = '', '1'
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'c' then envelope = entry[2][i + 1] end
      if entry[2][i] == 'a' then attempt = entry[2][i + 1] end
    end
    found[#found + 1] = {row[1], attempt, envelope}
  else
    redis.call('XACK', KEYS[1], ARGV[1], row[1])
  end
end
return found
