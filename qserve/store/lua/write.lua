-- write.lua: change records of state in one step, if the writer may; count the change and tell it.
-- KEYS 1 leader, 2 generation, 3.. the hashes, and lists: a change without a field puts its value first, of 100, or
--      removes the list when there is no value.
-- ARGV 1 holder ("term:id") that must lead, empty when anyone may write, 2 events channel, 3 how many events to tell,
--      4.. the events; then for each change: number of the hash (1 is KEYS 3), field, value (empty: delete the field).
-- Returns 1 when written, 0 when the writer does not lead any more.  Cost O(changes + events).
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local told = tonumber(ARGV[3])
for i = 4 + told, #ARGV, 3 do
  local hash = KEYS[tonumber(ARGV[i]) + 2]
  if ARGV[i + 1] == '' and ARGV[i + 2] == '' then
    redis.call('UNLINK', hash)
  elseif ARGV[i + 1] == '' then
    redis.call('LPUSH', hash, ARGV[i + 2])
    redis.call('LTRIM', hash, 0, 99)
  elseif ARGV[i + 2] == '' then
    redis.call('HDEL', hash, ARGV[i + 1])
  else
    redis.call('HSET', hash, ARGV[i + 1], ARGV[i + 2])
  end
end
redis.call('INCR', KEYS[2])
for i = 4, 3 + told do redis.call('PUBLISH', ARGV[2], ARGV[i]) end
return 1
