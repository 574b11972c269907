-- call_off.lua: answer calls that are not due yet, and forget them: they will not run.
-- KEYS 1 delayed, 2 their envelopes, 3.. the calls' records.
-- ARGV 1 time to live of a reply (ms), 2 largest reply told inline (bytes), 3.. for each call: id, the caller's inbox,
--      reply.
-- Returns how many were answered: those that had not been moved into their queue.
-- Works on a full server: its first write, ZREM, needs no memory.  Cost O(calls * log(delayed)).
local answered = 0
for i = 1, #KEYS - 2 do
  local key, id, caller, reply = KEYS[i + 2], ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  redis.call('ZREM', KEYS[1], id)
  if redis.call('HDEL', KEYS[2], id) == 1 then
    local record = redis.pcall('GET', key)
    if type(record) ~= 'string' then record = '' end
    redis.call('SET', key, reply, 'PX', ARGV[1])
    local note = struct.pack('>I4', #reply) .. reply
    if #reply > tonumber(ARGV[2]) then note = struct.pack('>I4', 0) .. string.sub(reply, 11, 26) end
    if caller ~= '' then redis.call('PUBLISH', caller, note) end
    for watcher in string.gmatch(record, '|([^|]+)') do
      if watcher ~= caller then redis.call('PUBLISH', watcher, note) end
    end
    answered = answered + 1
  end
end
return answered
