-- depth.lua: how much a deployment has to do. A queue that is missing is empty.
-- KEYS 1 queue, 2 front.  ARGV 1 group.
-- Returns how many calls wait, how many run, since when the oldest of the waiting waits (ms ago), and how many were
-- ever added to the queue; -1 for the latter when there is none.
-- Cost O(1), and three envelopes at the most, which are read.
local function named(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local function group_of(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for i = 1, #groups do
    local group = named(groups[i])
    if group['name'] == ARGV[1] then return group end
  end
  return {['pending'] = 0, ['last-delivered-id'] = '0-0'}
end
local queue = redis.pcall('XINFO', 'STREAM', KEYS[1])
local added = queue.err and -1 or named(queue)['entries-added']
local waiting, running, oldest = 0, 0, nil
for stream = 1, 2 do
  local length = redis.call('XLEN', KEYS[stream])
  local group = length > 0 and group_of(KEYS[stream])
  if group then
    running = running + group['pending']
    if length > group['pending'] then
      waiting = waiting + length - group['pending']
      local first = redis.call('XRANGE', KEYS[stream], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1]
      local since = first and tonumber(string.match(first[1], '^%d+'))
      if since and (not oldest or since < oldest) then oldest = since end
    end
  end
end
if not oldest then return {waiting, running, 0, added} end
local time = redis.call('TIME')
return {waiting, running, math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - oldest), added}
