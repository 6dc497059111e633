-- For wrk: asks for uniformly random keys. Arguments after "--": how many keys there are, a seed, a path with {key} in it,
-- and a JSON body with {key} in it (none: GET).
local format, random = string.format, math.random
local template, keys

function init(arguments)
  keys = tonumber(arguments[1])
  math.randomseed(tonumber(arguments[2]))
  local path, body, method = arguments[3], arguments[4], "GET"
  local headers = {}
  if body then
    -- Filled up with blanks, so that all are of one length.
    method, headers = "POST", { ["Content-Type"] = "application/json" }
    body = body:gsub("{key}", format("%12s", "{number}"))
  end
  local request = wrk.format(method, path, headers, body)
  template = request:gsub("%%", "%%%%"):gsub(" *{number}", "%%12d"):gsub("{key}", "%%d")
end

function request()
  return format(template, random(0, keys - 1))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(format(
    "RESULT {\"requests\": %d, \"seconds\": %.6f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"refused\": %d, \"broken\": %d}\n",
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
