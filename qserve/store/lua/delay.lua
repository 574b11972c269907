-- delay.lua: keep calls until they are due, each once however often they are sent.
-- KEYS 1 delayed, 2 their envelopes, 3 queue, 4 asleep, 5.. the calls' records.
-- ARGV 1 events channel, 2 what a hint begins with, 3.. for each call: id, when it is due (server ms, '+' and ms: from
--      now), envelope.
-- Returns how many were taken, from the first on (known ones count, also when the deployment is gone by now), and 0;
-- -1 for the latter when the deployment is gone. Tells when the next call is due, if that is sooner than before.
-- Cost O(calls * log(delayed)).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local is_there = redis.call('EXISTS', KEYS[3], KEYS[4]) > 0
local before = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local soonest = tonumber(before) or math.huge
local count = #KEYS - 4
local taken = {count, 0}
local is_sooner = false
for i = 1, count do
  local record, id, due, envelope = KEYS[i + 4], ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  if redis.call('EXISTS', record) == 0 then
    if not is_there then
      taken = {i - 1, -1}
      break
    end
    local due_ms = tonumber(due)
    if string.sub(due, 1, 1) == '+' then due_ms = now_ms + due_ms end
    local text = string.format('%.0f', due_ms)
    local refused = redis.pcall('ZADD', KEYS[1], text, id)
    if type(refused) == 'table' then return refused end -- no memory
    redis.call('HSET', KEYS[2], id, envelope)
    redis.call('SET', record, 'Qd' .. text)
    if due_ms < soonest then soonest, is_sooner = due_ms, true end
  end
end
if is_sooner then redis.call('PUBLISH', ARGV[1], ARGV[2] .. string.format('%.0f', soonest)) end
return taken
