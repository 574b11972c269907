-- lead.lua: take or renew the leadership. A new reign has a new, higher term.
-- KEYS 1 leader, 2 term counter.  ARGV 1 controller id, 2 time to live (ms).
-- Returns the term when this controller leads, 0 when another does.  Cost O(1).
local holder = redis.call('GET', KEYS[1])
if not holder then
  local term = redis.call('INCR', KEYS[2])
  redis.call('SET', KEYS[1], term .. ':' .. ARGV[1], 'PX', ARGV[2])
  return term
end
local term, id = string.match(holder, '^(%d+):(.*)$')
if id ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(term)
