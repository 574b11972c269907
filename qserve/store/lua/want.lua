-- want.lua: want applications as given, or no longer: their specs, their histories and their code change in one step.
-- KEYS 1 apps, 2 generation, 3.. the history of each application, then the key of each code.
-- ARGV 1 events channel, 2 how many entries a history keeps, 3 number of applications,
--      4.. of each application: its name, its spec as the writer read it (empty: there was none), its new spec (empty:
--      not wanted any more), 1 to begin an entry of its history or 0 to replace the newest; then each code.
-- Returns nil when an application is not as it was read: nothing is written; else the name and spec of each that left
-- a history.
-- Cost O(applications + code).
local apps, keeps, count = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 1, count do
  local before = redis.call('HGET', apps, ARGV[4 * i]) or ''
  if before ~= ARGV[4 * i + 1] then return false end
end
local left = {}
local function leave(name, specs)
  for _, spec in ipairs(specs) do
    left[#left + 1] = name
    left[#left + 1] = spec
  end
end
for i = 1, count do
  local name, history, spec = ARGV[4 * i], KEYS[i + 2], ARGV[4 * i + 2]
  if spec == '' then
    redis.call('HDEL', apps, name)
    leave(name, redis.call('LRANGE', history, 0, -1))
    redis.call('UNLINK', history)
    redis.call('PUBLISH', ARGV[1], 'delete ' .. name)
  else
    redis.call('HSET', apps, name, spec)
    if ARGV[4 * i + 3] == '0' then leave(name, {redis.call('LPOP', history) or nil}) end
    redis.call('LPUSH', history, spec)
    leave(name, redis.call('LRANGE', history, keeps, -1))
    redis.call('LTRIM', history, 0, keeps - 1)
    redis.call('PUBLISH', ARGV[1], 'deploy ' .. name)
  end
end
for i = count + 3, #KEYS do redis.call('SET', KEYS[i], ARGV[3 * count + 1 + i]) end
redis.call('INCR', KEYS[2])
return left
