-- put.lua: add calls to a deployment's queue, each once however often it is sent. A deployment that is asleep wakes.
-- KEYS 1 queue, 2 front, 3 asleep, 4.. the calls' records.
-- ARGV 1 group, 2 most calls that may wait (-1: no limit), 3.. the calls' envelopes, in the records' order.
-- Returns how many were taken, from the first on (known ones count, also when the deployment is gone by now), and how
-- many wait; -1 for the latter when the deployment is gone.  Cost O(calls).
local limit = tonumber(ARGV[2])
local count = #KEYS - 3
local waiting = 0
if limit >= 0 then
  for stream = 1, 2 do
    local pending = redis.pcall('XPENDING', KEYS[stream], ARGV[1])
    waiting = waiting + redis.call('XLEN', KEYS[stream]) - (pending.err and 0 or pending[1])
  end
end
local function wake()
  local told = redis.call('GET', KEYS[3])
  if not told then return false end
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM')
  redis.call('DEL', KEYS[3])
  local channel, event = string.match(told, '^(%S+) (.+)$')
  if channel then redis.call('PUBLISH', channel, event) end
  return true
end
local function add(i)
  local entry = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', '*', 'c', ARGV[i + 2])
  if not entry and wake() then entry = redis.call('XADD', KEYS[1], '*', 'c', ARGV[i + 2]) end
  if type(entry) == 'table' then return nil, entry end -- no memory
  return entry and ('Qc' .. entry)
end
if limit < 0 then
  local records, entries = {}, {}
  for i = 1, count do
    local state = add(i)
    if not state then break end
    records[2 * i - 1], records[2 * i], entries[i] = KEYS[i + 3], state, string.sub(state, 3)
  end
  if entries[count] and redis.call('MSETNX', unpack(records)) == 1 then return {count, waiting} end
  -- Some were sent before, or cannot be added: start again, one by one, for calls that are known stay taken.
  if entries[1] then redis.call('XDEL', KEYS[1], unpack(entries)) end
end
for i = 1, count do
  if redis.call('EXISTS', KEYS[i + 3]) == 0 then
    if limit >= 0 and waiting >= limit then return {i - 1, waiting} end
    local state, refused = add(i)
    if refused then return refused end
    if not state then return {i - 1, -1} end
    redis.call('SET', KEYS[i + 3], state)
    waiting = waiting + 1
  end
end
return {count, waiting}
