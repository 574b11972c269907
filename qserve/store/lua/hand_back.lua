#!lua flags=allow-oom
-- hand_back.lua: put calls that a replica holds to the front of the queue, as new entries.
-- The old entry is gone with it, so a late reply of the old owner finds nothing to acknowledge: that is the fence.
-- On a full server too: what is added is deleted in the same step.
-- KEYS 1 queue the calls came from, 2 front, 3.. the calls' records.
-- ARGV 1 group, 2 replica, 3.. for each call: entry id, attempt of the new entry.
-- Returns how many were handed back. Those that the replica no longer holds are left alone; a copy of a call's entry,
-- which its record does not name, is dropped.  Cost O(calls).
local moved = 0
for i = 1, #KEYS - 2 do
  local id, attempt, record = ARGV[2 * i + 1], ARGV[2 * i + 2], KEYS[i + 2]
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
  local entry = not held.err and held[1] and redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local envelope = ''
    for f = 1, #entry[2], 2 do
      if entry[2][f] == 'c' then envelope = entry[2][f + 1] end
    end
    local before = redis.pcall('GET', record)
    local named, watchers = id, '' -- a record that is gone is made again
    if type(before) == 'string' then named, watchers = string.match(before, '^Q.([^|]*)(.*)$') end
    if named == id then
      local again = redis.call('XADD', KEYS[2], '*', 'c', envelope, 'a', attempt)
      redis.call('SET', record, 'Qf' .. again .. watchers)
      moved = moved + 1
    end
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
  end
end
return moved
