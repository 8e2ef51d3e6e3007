// Numbers and moments for people.

const DASH = "–";

/** @param {number | null | undefined} value @param {number} [digits] */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: Number.isInteger(value) ? 0 : Math.min(digits, 2) });
}

/** Always as many digits, so that numbers below each other can be compared. @param {number | null | undefined} value */
export function exact(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? DASH : value.toFixed(4);
}

/** Four digits behind the point, or powers of ten where those say nothing. @param {number | null | undefined} value */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  const size = Math.abs(value);
  return size >= 1e6 || (size > 0 && size < 1e-3) ? value.toExponential(3) : value.toFixed(4);
}

/** A number on an axis: all of them with as many digits as tell two apart. @param {number} value @param {number} step between two */
export function tick(value, step) {
  const size = Math.max(Math.abs(value), step);
  if (size >= 1e6 || step < 1e-5) return value.toExponential(1);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  // 2.5 has one digit more than its size says.
  const exact = Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-6;
  return value.toLocaleString("en", { minimumFractionDigits: exact ? digits : digits + 1, maximumFractionDigits: exact ? digits : digits + 1 });
}

/** A share on an axis. @param {number} value @param {number} step */
export function percentTick(value, step) {
  return `${tick(100 * value, 100 * step)} %`;
}

/** Seconds on an axis, all in one unit. @param {number} value @param {number} step */
export function durationTick(value, step) {
  if (step < 0.1) return `${tick(1000 * value, 1000 * step)} ms`;
  if (step < 60) return `${tick(value, step)} s`;
  if (step < 3600) return `${Math.round(value / 60)} min`;
  if (step < 86400) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

/** With a capital at its beginning. @param {string} text */
export function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

/** @param {number | null | undefined} value */
export function percent(value) {
  return value === null || value === undefined ? DASH : `${(100 * value).toFixed(1)} %`;
}

/** A delta, as a power of ten. @param {number} value */
export function delta(value) {
  return value.toExponential().replace(/e-0*/, "e-");
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return `${Number((1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0))} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** How far this browser's clock is from UTC at a moment, as `UTC+1`; logs and commands tell UTC. @param {Date} date */
function zone(date) {
  const minutes = -date.getTimezoneOffset();
  if (minutes === 0) return "UTC";
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `UTC${minutes < 0 ? "−" : "+"}${hours}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
}

/** A moment in this browser's zone, which is named. @param {number | null | undefined} seconds since the Unix epoch */
export function moment(seconds) {
  if (!seconds) return DASH;
  const date = new Date(1000 * seconds);
  const two = (/** @type {number} */ part) => String(part).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())} ${zone(date)}`;
}

/** How long ago. @param {number | null | undefined} seconds since the Unix epoch */
export function ago(seconds) {
  if (!seconds) return DASH;
  const passed = Date.now() / 1000 - seconds;
  return passed < 5 ? "just now" : `${duration(passed)} ago`;
}

/** @param {Record<string, number>} counts by reason */
export function total(counts) {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

/** What a state of a run is called. @type {Record<string, string>} */
export const STATES = {
  queued: "Queued",
  running: "Running",
  paused: "Paused",
  stopping: "Stopping",
  stopped: "Stopped",
  finished: "Finished",
  failed: "Failed",
  budget_exhausted: "Budget spent",
};

/** Whom a promise of privacy protects. @type {Record<string, string>} */
export const UNITS = { client: "one site as a whole", example: "one record" };

/** What a state of a site is called. @type {Record<string, string>} */
export const MEMBERSHIPS = {
  waiting: "Waits for approval",
  member: "Member",
  quarantined: "Quarantine",
  invited: "Invited",
  invite_expired: "Invite expired",
  revoked: "Revoked",
  revoked_and_invited: "Revoked, invited again",
  issued: "Member",
};

/** Why an answer does not count, or a task is not done. @type {Record<string, string>} */
export const REASONS = {
  unsolicited: "it was not asked",
  stale: "its round was over",
  duplicate: "it had answered already",
  wrong_kind: "the answer is of another kind",
  wrong_shape: "another number of values",
  out_of_range: "a value beyond the lattice",
  norm_exceeded: "longer than the norm bound",
  wrong_weight: "a weight out of bounds",
  bad_metrics: "metrics that are not finite",
  malformed: "not a message of the protocol",
  oversize: "longer than allowed",
  truncated: "the upload broke off",
  too_slow: "the upload took too long",
  bad_vote: "an invalid vote",
  quarantined: "it was in quarantine",
  unsupported: "its software does not know this task",
  data: "its data does not fit the plan",
  not_finite: "training gave no finite numbers",
  stopped: "it was shutting down",
  failed: "training failed",
  policy: "its own policy does not allow it",
  budget: "its own privacy budget cannot pay",
};
