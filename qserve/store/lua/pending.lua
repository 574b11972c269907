-- pending.lua: what one replica holds of a queue, a page at a time.
-- KEYS 1 queue.  ARGV 1 group, 2 replica, 3 most entries to tell, 4 where the page begins ('-', or '(' and an id),
--      5 how many bytes of envelopes fill a page.
-- Returns for each: entry id, attempt, envelope; nothing when no entry is left. Entries that somebody deleted are
-- acknowledged.  Cost O(entries).
local found, size = {}, 0
local function tell(id, fields)
  local envelope, attempt = '', '1'
  for i = 1, #fields, 2 do
    if fields[i] == 'c' then envelope = fields[i + 1] end
    if fields[i] == 'a' then attempt = fields[i + 1] end
  end
  found[#found + 1] = {id, attempt, envelope}
  size = size + #envelope
end
while #found == 0 do
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[4], '+', ARGV[3], ARGV[2])
  if held.err then return string.find(held.err, '^NOGROUP') and {} or held end
  if #held == 0 then return {} end
  for _, row in ipairs(held) do
    local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
    if entry then
      tell(entry[1], entry[2])
      if size >= tonumber(ARGV[5]) then return found end
    else
      redis.call('XACK', KEYS[1], ARGV[1], row[1])
    end
  end
end
return found
