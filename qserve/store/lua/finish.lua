-- finish.lua: store calls' replies and take the calls off their queue, unless another replica has them now.
-- KEYS 1 queue the calls came from, 2.. the calls' records.
-- ARGV 1 group, 2 time to live of a reply (ms), 3 largest reply told inline (bytes),
--      4.. for each call: entry id, the caller's inbox, reply.
-- Returns how many were fenced: their entries are gone, so somebody else answers.  Cost O(calls).
local count = #KEYS - 1
local entries, mine = {}, nil
for i = 1, count do entries[i] = ARGV[3 * i + 1] end
if redis.call('XACK', KEYS[1], ARGV[1], unpack(entries)) == count then
  redis.call('XDEL', KEYS[1], unpack(entries))
else
  mine = {}
  for i = 1, count do mine[i] = redis.call('XDEL', KEYS[1], entries[i]) == 1 end
end
local notes = {}
local function tell(inbox, note)
  local parts = notes[inbox]
  if parts then parts[#parts + 1] = note else notes[inbox] = {note} end
end
local fenced = 0
for i = 1, count do
  if mine and not mine[i] then
    fenced = fenced + 1
  else
    local reply = ARGV[3 * i + 3]
    local before = redis.call('SET', KEYS[i + 1], reply, 'PX', ARGV[2], 'GET')
    local note = struct.pack('>I4', #reply) .. reply
    if #reply > tonumber(ARGV[3]) then note = struct.pack('>I4', 0) .. string.sub(reply, 11, 26) end
    if ARGV[3 * i + 2] ~= '' then tell(ARGV[3 * i + 2], note) end
    if before and string.sub(before, 1, 1) == 'Q' then
      for watcher in string.gmatch(before, '|([^|]+)') do tell(watcher, note) end
    end
  end
end
for inbox, parts in pairs(notes) do redis.call('PUBLISH', inbox, table.concat(parts)) end
return fenced
