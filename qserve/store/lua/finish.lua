-- finish.lua: store calls' replies and take the calls off their queue, unless another replica has them now.
-- KEYS 1 queue the calls came from, 2.. the calls' records.
-- ARGV 1 group, 2 time to live of a reply (ms), 3 largest reply told inline (bytes),
--      4.. for each call: entry id, the caller's inbox, reply.
-- Returns how many were fenced: their entries are gone, or copies of a call's entry; somebody else answers.
-- Works on a full server: its first write, XACK, needs no memory.  Cost O(calls).
local count = #KEYS - 1
local entries, mine = {}, nil
for i = 1, count do entries[i] = ARGV[3 * i + 1] end
if redis.call('XACK', KEYS[1], ARGV[1], unpack(entries)) == count then
  redis.call('XDEL', KEYS[1], unpack(entries))
else
  mine = {}
  for i = 1, count do mine[i] = redis.call('XDEL', KEYS[1], entries[i]) == 1 end
end
-- What the record held before; nil when it names another entry, or holds a reply: then it is left as it was.
local function store(key, entry, reply)
  local before = redis.pcall('SET', key, reply, 'PX', ARGV[2], 'GET')
  if not before then return '' end
  if type(before) == 'table' then -- no string: an error here would lose the replies behind this one
    redis.call('SET', key, reply, 'PX', ARGV[2])
    return ''
  end
  if string.match(before, '^Q.([^|]*)') == entry then return before end
  if string.sub(before, 1, 1) == 'Q' then
    redis.call('SET', key, before)
  else
    redis.call('SET', key, before, 'PX', ARGV[2])
  end
end
local notes = {}
local function tell(inbox, note)
  local parts = notes[inbox]
  if parts then parts[#parts + 1] = note else notes[inbox] = {note} end
end
local fenced = 0
for i = 1, count do
  local reply = ARGV[3 * i + 3]
  local before = (not mine or mine[i]) and store(KEYS[i + 1], entries[i], reply)
  if not before then
    fenced = fenced + 1
  else
    local note = struct.pack('>I4', #reply) .. reply
    if #reply > tonumber(ARGV[3]) then note = struct.pack('>I4', 0) .. string.sub(reply, 11, 26) end
    local caller = ARGV[3 * i + 2]
    if caller ~= '' then tell(caller, note) end
    for watcher in string.gmatch(before, '|([^|]+)') do
      if watcher ~= caller then tell(watcher, note) end
    end
  end
end
for inbox, parts in pairs(notes) do redis.call('PUBLISH', inbox, table.concat(parts)) end
return fenced
