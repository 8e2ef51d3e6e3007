// Sites: who belongs to the federation and who is there; inviting, approving, quarantining and revoking.

import { get, post } from "../api.js";
import { confirm, open } from "../dialogs.js";
import { fill, h, rows, say } from "../dom.js";
import { MEMBERSHIPS, ago, moment, number, total } from "../format.js";

export const title = "Sites";

/** @param {Record<string, number>} counts */
function why(counts) {
  const all = Object.entries(counts).map(([reason, count]) => `${count} ${reason.replaceAll("_", " ")}`);
  return h("span", { class: all.length > 0 && "attention" }, number(total(counts), 0), all.length > 0 && h("div", { class: "muted" }, all.join(", ")));
}

/** @param {any} site */
function line(site) {
  const state = site.connected ? "live" : "lost";
  const text = site.connected ? "Connected" : site.last_seen ? "Away" : "Not seen";
  const since = site.connected ? `since ${moment(site.greeted)}` : site.last_seen ? `last seen ${ago(site.last_seen)}` : "since the server started";
  return [h("span", { class: "line", "data-state": state }, h("span", { class: "dot", "aria-hidden": "true" }), text), h("div", { class: "muted" }, since)];
}

/** @param {any} site */
function membership(site) {
  const dates = [];
  if (site.state === "waiting") dates.push(...site.waiting.map((/** @type {any} */ one) => `“${one.phrase}” from ${one.address}, since ${moment(one.since)}`));
  else if (site.state === "issued") dates.push("certificate made at the server");
  else if (site.quarantined && !site.state.startsWith("revoked")) dates.push([`since ${moment(site.quarantined)}`, site.quarantine_reason].filter(Boolean).join(": "));
  else if (site.revoked && site.state.startsWith("revoked")) dates.push(`revoked ${moment(site.revoked)}`);
  else if (site.joined) dates.push(`joined ${moment(site.joined)}`);
  else if (site.invited) dates.push(`invite ends ${moment(site.expires)}`);
  return [h("span", { class: "badge", "data-state": site.state }, MEMBERSHIPS[site.state] ?? site.state), h("div", { class: "muted" }, dates.join(", "))];
}

/** @param {import("../main.js").Stage} stage @returns {import("../main.js").View} */
export function show({ root, signal, fail }) {
  const body = h("tbody", {});
  const heads = ["Site", "Membership", "Connection", "Program", "Answers that count", "Refused", "Declined", "Actions"];
  const table = h("div", { class: "scroll stack card flush", tabindex: "0", role: "region", "aria-label": "Sites", hidden: true },
    h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col", class: name.startsWith("Answers") ? "number" : null }, name)))), body));
  const empty = h("div", { class: "card empty", hidden: true },
    h("h2", {}, "No site yet"),
    h("p", {}, "Invite the institutions that are to train together. Each gets a line that makes it a member, once."),
    h("p", {}, "In a terminal: ", h("code", {}, "consortia invite create NAME --dir DIR")),
    h("button", { type: "button", class: "primary", onclick: () => invite(refresh) }, "Invite sites"));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Sites"), h("button", { type: "button", class: "primary", onclick: () => invite(refresh) }, "Invite sites")),
    h("p", { class: "lead" }, "Answers are counted over the newest 20 runs."),
    table, empty);

  /** @param {any} site */
  const row = (site) => h("tr", {},
    h("th", { scope: "row" }, site.site),
    h("td", { "data-label": "Membership" }, h("div", {}, membership(site))),
    h("td", { "data-label": "Connection" }, h("div", {}, line(site))),
    h("td", { "data-label": "Program" }, h("div", { class: "muted" }, site.software ?? "–", site.address && h("div", { class: "id" }, site.address))),
    h("td", { class: "number", "data-label": "Answers that count" }, number(site.accepted, 0)),
    h("td", { "data-label": "Refused" }, why(site.refused)),
    h("td", { "data-label": "Declined" }, why(site.declined)),
    h("td", {}, h("div", { class: "buttons" },
      site.waiting.length > 0 && h("button", { type: "button", class: "primary", "data-keep": "approve", "aria-label": `Approve ${site.site}`, onclick: () => approve(site, refresh) }, "Approve"),
      site.waiting.length > 0 && h("button", { type: "button", class: "danger-quiet", "data-keep": "refuse", "aria-label": `Refuse ${site.site}`, onclick: () => refuse(site, refresh) }, "Refuse"),
      site.quarantined && h("button", { type: "button", "data-keep": "release", "aria-label": `Release ${site.site}`, onclick: () => release(site, refresh) }, "Release"),
      !site.quarantined && ["member", "issued"].includes(site.state) && h("button", { type: "button", "data-keep": "quarantine", "aria-label": `Quarantine ${site.site}`, onclick: () => quarantine(site, refresh) }, "Quarantine"),
      site.state !== "revoked" && h("button", { type: "button", class: "danger-quiet", "data-keep": "revoke", "aria-label": `Revoke ${site.site}`, onclick: () => revoke(site, refresh) }, "Revoke"))));

  async function refresh() {
    try {
      const sites = await get("sites", signal);
      rows(body, sites, (site) => site.site, row);
      table.hidden = sites.length === 0;
      empty.hidden = sites.length > 0;
    } catch (error) {
      fail(error);
    }
  }
  refresh();
  const timer = setInterval(refresh, 10000);
  return {
    heard: (name) => { if (name === "sites") refresh(); },
    back: refresh,
    close: () => clearInterval(timer),
  };
}

/**
 * Asks for one line, and does with it what is to be done.
 * @param {{ title: string, text: string, label: (string | Node)[], input: HTMLInputElement, action: string, perform: (line: string) => Promise<void> }} what
 */
function ask({ title, text, label, input, action, perform }) {
  const failed = h("p", { class: "error", role: "alert" });
  const form = h("form", { id: "line-form" }, h("p", {}, text), h("label", { for: input.id }, ...label), input, failed);
  const button = h("button", { type: "submit", class: "primary", form: "line-form" }, action);
  const dialog = open(title, [form], [button]);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await perform(input.value);
      dialog.close();
    } catch (error) {
      fill(failed, /** @type {Error} */ (error).message);
      button.disabled = false;
    }
  });
}

/** @param {any} site @param {() => Promise<void>} refresh */
function approve(site, refresh) {
  ask({
    title: `Approve ${site.site}`,
    text: `Somebody with an invite wants to become ${site.site}. Call the site: its people see three words where they joined. Type what they say.`,
    label: ["What the site says"],
    input: h("input", { id: "phrase", autocomplete: "off", spellcheck: "false", required: true, autofocus: true, placeholder: "three words" }),
    action: "Approve",
    perform: async (phrase) => {
      await post(`sites/${site.site}/approve`, { phrase });
      say(`${site.site} is approved.`);
      await refresh();
    },
  });
}

/** @param {any} site @param {() => Promise<void>} refresh */
function refuse(site, refresh) {
  confirm({
    title: `Refuse ${site.site}`,
    text: [`Whoever waits to become ${site.site} is refused, and the invite is worth nothing any more.`],
    action: "Refuse",
    danger: true,
    perform: async () => {
      await post(`sites/${site.site}/refuse`);
      say(`${site.site} is refused.`);
      await refresh();
    },
  });
}

/** @param {any} site @param {() => Promise<void>} refresh */
function quarantine(site, refresh) {
  ask({
    title: `Quarantine ${site.site}`,
    text: `${site.site} stays a member and connected, and gets no task. What it owes now is refused, what it has contributed stays. Its people are told so.`,
    label: ["Why ", h("span", { class: "muted" }, "(one line, which they read)")],
    input: h("input", { id: "reason", autocomplete: "off", maxlength: "500", autofocus: true, placeholder: "its updates look odd since Monday" }),
    action: "Quarantine",
    perform: async (reason) => {
      await post(`sites/${site.site}/quarantine`, { reason });
      say(`${site.site} is in quarantine.`);
      await refresh();
    },
  });
}

/** @param {any} site @param {() => Promise<void>} refresh */
function release(site, refresh) {
  confirm({
    title: `Release ${site.site}`,
    text: [`${site.site} may be asked again from the next round on.`],
    action: "Release",
    perform: async () => {
      await post(`sites/${site.site}/release`);
      say(`${site.site} is released.`);
      await refresh();
    },
  });
}

/** @param {any} site @param {() => Promise<void>} refresh */
function revoke(site, refresh) {
  confirm({
    title: `Revoke ${site.site}`,
    text: [
      `The certificates and invites of ${site.site} become void, and its connection is closed at once. What it has contributed to models stays in them.`,
      "To let it back in, invite it again.",
    ],
    action: "Revoke",
    danger: true,
    typed: site.site,
    perform: async () => {
      await post(`sites/${site.site}/revoke`);
      say(`${site.site} is revoked.`);
      await refresh();
    },
  });
}

/** Asks for names and shows the lines. @param {() => Promise<void>} refresh */
async function invite(refresh) {
  const status = await get("status").catch(() => ({ addresses: [] }));
  const names = h("input", { id: "names", autocomplete: "off", spellcheck: "false", required: true, autofocus: true, placeholder: "cleveland hungarian va" });
  const hours = h("input", { id: "hours", type: "number", min: "1", max: "2160", value: "72", required: true });
  const servers = h("input", { id: "servers", autocomplete: "off", spellcheck: "false", required: true, value: status.addresses.join(" "), placeholder: "fed.example.org:4433" });
  const failed = h("p", { class: "error", role: "alert" });
  const form = h("form", { id: "invite-form" },
    h("label", { for: "names" }, "Names ", h("span", { class: "muted" }, "(a-z, 0-9, '.', '_' and '-'; spaces between them)")), names,
    h("label", { for: "hours" }, "Good for hours"), hours,
    h("label", { for: "servers" }, "Where sites reach the server ", h("span", { class: "muted" }, "(host:port)")), servers,
    failed);
  const button = h("button", { type: "submit", class: "primary", form: "invite-form" }, "Make invites");
  const dialog = open("Invite sites", [form], [button]);
  const words = (/** @type {string} */ text) => text.split(/[\s,]+/).filter(Boolean);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const made = await post("invites", { sites: words(names.value), servers: words(servers.value), hours: Number(hours.value) });
      dialog.close();
      hand(made);
      await refresh();
    } catch (error) {
      fill(failed, /** @type {Error} */ (error).message);
      button.disabled = false;
    }
  });
}

/** Shows invites, which nobody can see again. @param {any[]} made */
function hand(made) {
  const body = made.map(({ site, line: text, phrase, expires }) => {
    const command = `consortia site join ${text}`;
    const copy = h("button", { type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(command);
        copy.textContent = "Copied";
      } catch {
        // Without TLS a browser gives its clipboard to pages of this machine alone.
        getSelection()?.selectAllChildren(text_of);
      }
    } }, "Copy");
    const text_of = h("pre", { tabindex: "0", "aria-label": `The line for ${site}` }, command);
    return h("section", { class: "invite" },
      h("h3", {}, site), text_of,
      h("div", { class: "buttons" }, copy, h("span", { class: "muted" }, `Check phrase “${phrase}” · until ${moment(expires)}`)));
  });
  const text = h("p", {}, "Send each site its line. Whoever has a line can become that site, once: compare the check phrase by telephone. The lines are not shown again.");
  open("Invites", [text, ...body], [], "Close");
}
