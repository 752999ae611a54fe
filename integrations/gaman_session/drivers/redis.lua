-- What the driver asks of Redis: a batch of calls, each done at once or not at all.
--
-- ARGV[1] holds the calls as MessagePack, each as its operation, how many of KEYS and of the further ARGV are its own, and its
-- arguments. Values are in ARGV since a script's MessagePack knows no bytes. Numbers that are stored come as strings, in which they
-- keep their last digit. The answers are one flat array, each after the number of its parts, for Redis sends a nested array in
-- pieces.

local function missing(key, now)
    local ended, deadline, expires, version = unpack(redis.call('HMGET', key, 'ended', 'deadline', 'expires', 'version'))
    deadline = tonumber(deadline or '')
    if not deadline or deadline <= now then return 'ABSENT' end
    if ended then return 'ENDED' end
    if not tonumber(expires or '') or not tonumber(version or '') then return 'ABSENT' end
end

local function id_of(key)
    return string.sub(key, -64)
end

-- In a Cluster, what is beside a session has its hash tag, and so is in its slot.
local function beside(key, name)
    return string.sub(key, 1, -65) .. name
end

local function keep(key, now, deadline)
    redis.call('HSET', key, 'deadline', deadline)
    redis.call('PEXPIRE', key, math.ceil((tonumber(deadline) - now) * 1000))
end

local function set_all(key, names, values)
    for i, name in ipairs(names) do redis.call('HSET', key, name, values[i]) end
end

local function leave(key)
    local owner = redis.call('HGET', key, 'owner')
    -- In a Cluster, the owner's set has no hash tag: this key is nobody's, and the member goes later.
    if owner then redis.pcall('ZREM', beside(key, 'owner:' .. owner), id_of(key)) end
end

local function bury(key, now, successor)
    leave(key)
    redis.pcall('ZREM', beside(key, 'live'), id_of(key))
    redis.call('DEL', key)
    redis.call('HSET', key, 'ended', 1)
    if successor then redis.call('HSET', key, 'successor', successor) end
    keep(key, now, string.format('%.17g', now + TOMBSTONE))
end

local function is_refused(set, now, since)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
    local until_then = redis.call('ZSCORE', set, 'ended')
    return until_then and tonumber(since) < tonumber(until_then) - TOMBSTONE
end

local function expire_with_last(set, now)
    local latest = redis.call('ZREVRANGE', set, 0, 0, 'WITHSCORES')[2]
    if latest then redis.call('PEXPIRE', set, math.ceil((tonumber(latest) - now) * 1000)) end
end

local function enter(set, id, now, expires)
    redis.call('ZADD', set, expires, id)
    expire_with_last(set, now)
end

-- What is over leaves the index a few at a time, so that nobody waits for all of it.
local function enlist(key, now, deadline)
    local index = beside(key, 'live')
    local over = math.min(redis.call('ZCOUNT', index, '-inf', now), 100)
    if over > 0 then redis.call('ZREMRANGEBYRANK', index, 0, over - 1) end
    enter(index, id_of(key), now, deadline)
end

local function keep_live(key, now, deadline)
    keep(key, now, deadline)
    -- A count is worth no session: where the index is broken, it is without this one.
    pcall(enlist, key, now, deadline)
end

local function store(key, values, token, created, expires, deadline, names)
    if redis.call('EXISTS', key) == 1 then
        return redis.call('HGET', key, 'token') == token and 'WRITTEN' or 'CONFLICT'
    end
    redis.call('HSET', key, 'token', token, 'created', created, 'expires', expires, 'version', 0)
    set_all(key, names, values)
    keep_live(key, tonumber(created), deadline)
    return 'WRITTEN'
end

local operations = {}

function operations.load(keys)
    return redis.call('HGETALL', keys[1])
end

-- The second key is the owner's set, unless the session is nobody's or the set was entered before.
function operations.create(keys, values, since, token, created, expires, ...)
    local key, set = unpack(keys)
    local now = tonumber(created)
    if set and redis.call('EXISTS', key) == 0 then
        if is_refused(set, now, since) then return 'REFUSED' end
        enter(set, id_of(key), now, expires)
    end
    return store(key, values, token, created, expires, ...)
end

function operations.apply(keys, values, now, deadline, names, deletes)
    local key = keys[1]
    local state = missing(key, now)
    if state then return state end
    set_all(key, names, values)
    for _, name in ipairs(deletes) do redis.call('HDEL', key, name) end
    redis.call('HINCRBY', key, 'version', 1)
    if deadline then
        local expires = redis.call('HGET', key, 'expires')
        keep_live(key, now, tonumber(deadline) < tonumber(expires) and deadline or expires)
    end
    if #deletes == 0 then return 'WRITTEN' end
    for _, name in ipairs(redis.call('HKEYS', key)) do
        if string.sub(name, 1, 1) == ':' then return 'WRITTEN' end
    end
    bury(key, now)
    return 'EMPTIED'
end

function operations.swap(keys, values, now, deadline, token, name)
    local key, new, old = keys[1], unpack(values)
    local state = missing(key, now)
    if state then return state end
    if redis.call('HGET', key, 'token') == token then return 'WRITTEN' end
    if redis.call('HGET', key, name) ~= (old or false) then return 'CONFLICT' end
    return operations.apply(keys, {token, new}, now, deadline, {'token', name}, {})
end

-- The new id's key is not there in a Cluster, where it is created afterwards. The third is the set of the owner, if any.
function operations.rename(keys, values, now, version, new_id, since, ...)
    local key, new_key, set = unpack(keys)
    local state = missing(key, now)
    if state == 'ENDED' and redis.call('HGET', key, 'successor') == new_id then return 'WRITTEN' end
    if state then return state end
    if redis.call('HGET', key, 'version') ~= version then return 'CONFLICT' end
    if set and redis.call('HGET', key, 'since') ~= since and is_refused(set, now, since) then return 'REFUSED' end
    bury(key, now, new_id)
    if not new_key then return 'WRITTEN' end
    local _, _, expires = ...
    if set then enter(set, new_id, now, expires) end
    return store(new_key, values, ...)
end

-- Returns the successor, if any; a tombstone may have led here.
function operations.destroy(keys, values, now, is_led)
    local key = keys[1]
    local state = missing(key, now)
    if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
    if not state or is_led then bury(key, now) end
    return false
end

function operations.tag(keys, values, now, since, owner, ...)
    local key, set = unpack(keys)
    local state = missing(key, now)
    if state then return state end
    local barred = owner and tonumber(redis.call('HGET', key, 'barred:' .. owner) or '')
    if barred and tonumber(since) < barred then return 'REFUSED' end
    if set then
        if redis.call('HGET', key, 'since') ~= since and is_refused(set, now, since) then return 'REFUSED' end
        enter(set, id_of(key), now, redis.call('HGET', key, 'expires'))
    end
    if redis.call('HGET', key, 'owner') ~= owner then leave(key) end
    return operations.apply(keys, values, now, ...)
end

-- The set comes before the session where these are in two slots of a Cluster.
function operations.enter(keys, values, now, since, id, expires, is_carried)
    if is_refused(keys[1], now, since) and not is_carried then return 'REFUSED' end
    enter(keys[1], id, now, expires)
    return 'WRITTEN'
end

function operations.owned(keys, values, now)
    return redis.call('ZRANGEBYSCORE', keys[1], now, '+inf', 'WITHSCORES')
end

function operations.end_owned(keys, values, now, since)
    local set, over = keys[1], since + TOMBSTONE
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
    local until_then = redis.call('ZSCORE', set, 'ended')
    if not until_then or tonumber(until_then) < over then redis.call('ZADD', set, string.format('%.17g', over), 'ended') end
    expire_with_last(set, now)
    return redis.call('ZRANGE', set, 0, -1, 'WITHSCORES')
end

-- Returns 1 where a session was ended, 0 where it is somebody else's, or the successor, if any. What is not there may be about to be.
function operations.end_one(keys, values, now, owner, is_awaited, since)
    local key = keys[1]
    local state = missing(key, now)
    if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
    if state == 'ABSENT' and is_awaited then bury(key, now) end
    if state then return false end
    if redis.call('HGET', key, 'owner') ~= owner then
        -- In a Cluster, it may be about to be theirs: it is in their set already.
        redis.call('HSET', key, 'barred:' .. owner, since)
        return 0
    end
    bury(key, now)
    return 1
end

function operations.leave(keys, values, now, ids)
    for _, id in ipairs(ids) do redis.call('ZREM', keys[1], id) end
    expire_with_last(keys[1], now)
    return false
end

function operations.count(keys, values, now)
    return redis.call('ZCOUNT', keys[1], string.format('(%.17g', now), '+inf')
end

local answers = {}
local key, value = 0, 1
for _, call in ipairs(cmsgpack.unpack(ARGV[1])) do
    local keys, values = {}, {}
    for i = 1, call[2] do keys[i] = KEYS[key + i] end
    for i = 1, call[3] do values[i] = ARGV[value + i] end
    key, value = key + call[2], value + call[3]
    local is_done, answer = pcall(operations[call[1]], keys, values, unpack(call, 4))
    if not is_done then
        -- An error keeps its code at the front, where the client looks for it.
        local text = type(answer) == 'table' and answer.err or answer
        answer = {err = string.match(text, '%u%u%u+ .*') or text}
    end
    local parts = (type(answer) ~= 'table' or answer.err) and {answer} or answer
    answers[#answers + 1] = #parts
    for _, part in ipairs(parts) do answers[#answers + 1] = part end
end
return answers
