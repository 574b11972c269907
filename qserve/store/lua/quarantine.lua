-- quarantine.lua: take an entry that cannot be trusted off its queue, keep its bytes, tell the caller if it is one.
-- KEYS 1 queue, 2 quarantine, 3 the record of the call that the entry claims to be (the queue itself: none).
-- ARGV 1 group, 2 entry id, 3 state that the record has if this entry is that call's, 4 reason,
--      5 raw bytes (cut), 6 entries to keep, 7 the caller's inbox, 8 reply, 9 its time to live (ms).
-- Returns 1 when the entry was still there.  Cost O(1).
local record = KEYS[3] ~= KEYS[1] and redis.pcall('GET', KEYS[3])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'entry', ARGV[2], 'reason', ARGV[4], 'raw', ARGV[5])
-- Only the entry that put.lua made for this id may answer it: a copy with the same id answers nothing.
if type(record) == 'string' and string.match(record, '^[^|]*') == ARGV[3] then
  redis.call('SET', KEYS[3], ARGV[8], 'PX', ARGV[9])
  local note = struct.pack('>I4', #ARGV[8]) .. ARGV[8]
  redis.call('PUBLISH', ARGV[7], note)
  for watcher in string.gmatch(record, '|([^|]+)') do
    if watcher ~= ARGV[7] then redis.call('PUBLISH', watcher, note) end
  end
end
return 1
