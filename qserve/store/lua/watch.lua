-- watch.lua: read a call's record and, while there is no reply, ask to be told of it.
-- KEYS 1 record.  ARGV 1 inbox to tell.
-- Returns the record: a reply, or 'Q', stream (c, f), entry id and watchers; false when unknown.  Cost O(1).
local record = redis.call('GET', KEYS[1])
if record and string.sub(record, 1, 1) == 'Q' and not string.find(record .. '|', '|' .. ARGV[1] .. '|', 1, true) then
  redis.call('SET', KEYS[1], record .. '|' .. ARGV[1], 'KEEPTTL')
end
return record
