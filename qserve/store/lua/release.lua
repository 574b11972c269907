#!lua flags=allow-oom
-- release.lua: move delayed calls into their queue, in the order given, each once whoever asks; wake the deployment if
-- it is asleep. On a full server too: what is added is deleted in the same step.
-- KEYS 1 delayed, 2 their envelopes, 3 queue, 4 front, 5 asleep, 6.. the calls' records.
-- ARGV 1 group, 2 how many bytes of envelopes are enough, 3.. the calls' ids.
-- Returns how many were moved; -1 when one cannot be, because the deployment is gone.  Cost O(calls * log(delayed)).
local function wake()
  local told = redis.call('GET', KEYS[5])
  if not told then return false end
  for stream = 3, 4 do redis.pcall('XGROUP', 'CREATE', KEYS[stream], ARGV[1], '0', 'MKSTREAM') end
  redis.call('DEL', KEYS[5])
  local channel, event = string.match(told, '^(%S+) (.+)$')
  if channel then redis.call('PUBLISH', channel, event) end
  return true
end
local moved, size = 0, 0
for i = 6, #KEYS do
  local id = ARGV[i - 3]
  local envelope = redis.call('HGET', KEYS[2], id)
  local record = redis.pcall('GET', KEYS[i])
  if type(record) ~= 'string' then record = 'Qd' end -- one that is gone is made again
  if envelope and string.sub(record, 1, 2) == 'Qd' then
    if redis.call('EXISTS', KEYS[3]) == 0 and not wake() then return -1 end
    local watchers = string.match(record, '|.*$') or ''
    local entry = redis.call('XADD', KEYS[3], '*', 'c', envelope)
    redis.call('SET', KEYS[i], 'Qc' .. entry .. watchers)
    moved, size = moved + 1, size + #envelope
  end
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  if size >= tonumber(ARGV[2]) then break end
end
return moved
