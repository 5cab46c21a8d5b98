"use strict";
// What the planner reckons, once more, so that sliders can ask: planner/predict.py, planner/link.py and
// planner/choose.py. Milliseconds, bytes and bits a second; tests hold every figure against Python's.
const narrows = {
  SEGMENT_BYTES: 1448, RTO_S: 0.2, UNKNOWN_DROP: 100,

  // A point's parts `p` (report/figures.py: PointParts) under conditions `c`:
  // {bps, rtt_s, device, server, load}, where device and server are times as slow as measured.
  predict(p, model, c) {
    const s = { head: p.head * c.device, encode: p.encode * c.device, transport: 0, send: 0, trip: 0, queue: 0,
      decode: p.decode * c.server, tail: p.tail * c.server, final: p.final * c.device };
    const up_s = bytes => bytes * 8 / c.bps;
    if (p.mode !== "local") {
      const { jitter_s, loss, down_bps } = model.link;
      const segments = Math.max(1, Math.ceil(p.wire_p50 / narrows.SEGMENT_BYTES));
      const stall_s = loss * Math.max(narrows.RTO_S, c.rtt_s) + (1 - (1 - loss) ** (segments - 1)) * c.rtt_s;
      s.transport = model.transport.fixed_ms + p.wire_p50 * model.transport.byte_us / 1000;
      s.send = 1000 * up_s(p.wire_p50);
      s.trip = 1000 * (c.rtt_s + jitter_s + model.reply_bytes * 8 / (down_bps ?? c.bps) + stall_s);
      s.queue = narrows.queue(p.queue, model.loads, c.load) * c.server;
    }
    const latency = Object.values(s).reduce((a, b) => a + b, 0);
    const device = s.head + s.encode + s.final;
    const server = Math.max(s.decode, p.batch_ms * c.server) / (1 - c.load);
    const slowest = p.mode === "local" ? s.head : Math.max(s.head + s.final, s.encode, 1000 * up_s(p.wire_mean), server);
    const { compute_w, wait_w, radio_w } = model.power;
    return { point: p, stages: s, latency, fps: slowest ? 1000 / slowest : Infinity, bytes: p.wire_mean, drop: p.drop,
      energy: (compute_w * device + wait_w * (latency - device)) / 1000 + radio_w * up_s(p.wire_mean) };
  },

  // The queue was solved at some loads; in between lies a straight line, past the last one its end.
  queue(waits, loads, load) {
    const i = loads.findIndex(one => one >= load);
    if (i <= 0) return i ? waits.at(-1) : waits[0];
    return waits[i - 1] + (waits[i] - waits[i - 1]) * (load - loads[i - 1]) / (loads[i] - loads[i - 1]);
  },

  // By which factor a prediction exceeds each bound that it does not keep.
  misses(one, b) {
    const drop = one.drop ?? narrows.UNKNOWN_DROP, over = (value, bound) => bound === null ? 1 : value / bound;
    const held = {
      latency: over(one.latency, b.deadline_ms),
      throughput: b.min_fps === null ? 1 : b.min_fps / one.fps,
      bytes: over(one.bytes, b.max_bytes),
      energy: over(one.energy, b.max_energy_j),
      memory: over(one.point.memory_bytes ?? 0, b.max_memory_bytes),
      accuracy: b.max_accuracy_drop === null || drop <= b.max_accuracy_drop + 1e-9 ? 1 : (1 + drop) / (1 + b.max_accuracy_drop),
    };
    return Object.fromEntries(Object.entries(held).filter(([, factor]) => factor > 1));
  },

  COSTS: {
    latency: one => one.latency, throughput: one => -one.fps, energy: one => one.energy, bytes: one => one.bytes,
    accuracy: one => one.drop ?? narrows.UNKNOWN_DROP,
  },

  // The best of some predictions; where none keeps the bounds, the nearest miss: the least product of all excesses.
  best(predictions, bounds, objective) {
    const cost = narrows.COSTS[objective], missed = predictions.map(one => narrows.misses(one, bounds));
    const excess = missed.map(factors => Object.values(factors).reduce((a, b) => a * b, 1));
    const kept = excess.includes(1);
    const keys = predictions.map((one, i) => [excess[i], cost(one), kept ? one.latency : 0]);
    let found = 0;
    for (let i = 1; i < keys.length; i++) if (narrows.before(keys[i], keys[found])) found = i;
    return { best: predictions[found], misses: missed[found] };
  },

  before(a, b) {
    const i = a.findIndex((value, at) => value !== b[at]);
    return i >= 0 && a[i] < b[i];
  },
};
