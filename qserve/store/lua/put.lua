-- put.lua: add calls to a deployment's queue, each once however often it is sent.
-- KEYS 1 queue, 2 front, 3.. the calls' records.
-- ARGV 1 group, 2 most calls that may wait (-1: no limit), 3.. the calls' envelopes, in the records' order.
-- Returns how many were taken (known ones count), how many wait; -1, 0 when the deployment is gone.
-- Cost O(calls).
local limit = tonumber(ARGV[2])
local count = #KEYS - 2
local waiting = 0
if limit >= 0 then
  for stream = 1, 2 do
    local pending = redis.pcall('XPENDING', KEYS[stream], ARGV[1])
    waiting = waiting + redis.call('XLEN', KEYS[stream]) - (pending.err and 0 or pending[1])
  end
end
local function add(i)
  local entry = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'c', ARGV[i + 2])
  return entry and ('Qc' .. entry)
end
if limit < 0 then
  local records, entries = {}, {}
  for i = 1, count do
    local state = add(i)
    if not state then return {-1, 0} end
    records[2 * i - 1], records[2 * i], entries[i] = KEYS[i + 2], state, string.sub(state, 3)
  end
  if redis.call('MSETNX', unpack(records)) == 1 then return {count, waiting} end
  redis.call('XDEL', KEYS[1], unpack(entries)) -- some were sent before: start again, one by one
end
for i = 1, count do
  if redis.call('EXISTS', KEYS[i + 2]) == 0 then
    if limit >= 0 and waiting >= limit then return {i - 1, waiting} end
    local state = add(i)
    if not state then return {-1, 0} end
    redis.call('SET', KEYS[i + 2], state)
    waiting = waiting + 1
  end
end
return {count, waiting}
