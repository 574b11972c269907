-- hand_back.lua: put calls that a replica holds to the front of the queue, as new entries.
-- The old entry is gone with it, so a late reply of the old owner finds nothing to acknowledge: that is the fence.
-- KEYS 1 queue the calls came from, 2 front, 3.. the calls' records.
-- ARGV 1 group, 2 replica, 3.. for each call: entry id, attempt of the new entry.
-- Returns how many were handed back; those that the replica no longer holds are left alone.  Cost O(calls).
local moved = 0
for i = 1, #KEYS - 2 do
  local id, attempt = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
  local entry = not held.err and held[1] and redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local envelope = ''
    for f = 1, #entry[2], 2 do
      if entry[2][f] == 'c' then envelope = entry[2][f + 1] end
    end
    local again = redis.call('XADD', KEYS[2], '*', 'c', envelope, 'a', attempt)
    local before = redis.call('GET', KEYS[i + 2])
    local watchers = before and string.sub(before, 1, 1) == 'Q' and string.match(before, '|.*$') or ''
    redis.call('SET', KEYS[i + 2], 'Qf' .. again .. watchers)
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    moved = moved + 1
  end
end
return moved
