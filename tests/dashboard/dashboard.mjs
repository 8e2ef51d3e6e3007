// The dashboard in a real browser: run by tests/dashboard.rs, which has started a server and three sites and says in the
// environment where they are. It ends with an error at the first thing that is not as it should be.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const { CONSORTIA_BROWSER, CONSORTIA_URL, CONSORTIA_PLAN, CONSORTIA_SHOTS } = process.env;
const origin = new URL(CONSORTIA_URL).origin;
const token = new URL(CONSORTIA_URL).hash.replace("#token=", "");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const patience = 60000;

/** What pages said that they should not have. */
const faults = [];
/** While the server is away, requests may fail. */
let away = false;

const browser = await chromium.launch({
  executablePath: CONSORTIA_BROWSER,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.on("console", (line) => { if (["error", "warning"].includes(line.type()) && !away) faults.push(`console: ${line.text()}`); });
  page.on("pageerror", (error) => faults.push(`page: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${origin}/`) && !url.startsWith("data:")) faults.push(`a request to ${url}`);
    if (url.includes(token)) faults.push(`the token is in a request: ${url.replace(token, "TOKEN")}`);
  });
  return page;
}

/** A step: its name is printed, so that a failure says where it was. */
async function step(name, perform) {
  const began = Date.now();
  try {
    await perform();
  } catch (error) {
    error.message = `${name}: ${error.message}`;
    throw error;
  }
  console.log(`ok ${name} (${Date.now() - began} ms)`);
}

/** No serious finding of axe on what is shown, in either theme. */
async function accessible(page, what) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    // By the debugger's way: the page's own policy runs no script but its files.
    if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
    const { violations, passes } = await page.evaluate(() => window.axe.run(document));
    assert.ok(passes.length > 10, `${what}: axe looked at ${passes.length} rules only`);
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    const said = serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
    assert.deepEqual(said, [], `${what} in ${scheme}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
}

async function picture(page, name) {
  // Without what was said before, and nothing under the pointer.
  await page.evaluate(() => document.querySelectorAll(".toast").forEach((toast) => toast.remove()));
  await page.mouse.move(2, 2);
  await page.screenshot({ path: join(CONSORTIA_SHOTS, `dashboard-${name}.png`) });
}

/** Nothing is wider than the window. */
async function fits(page, what) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `${what} is ${over} pixels too wide`);
}

const state = (page) => page.locator(".title .badge");
const is = async (page, wanted) => page.locator(".title .badge", { hasText: new RegExp(`^${wanted}$`) }).waitFor();

/** Waits until what is read fits, and says what was read last when it never does. */
async function comes(read, pattern) {
  const until = Date.now() + patience;
  let found = await read();
  while (!pattern.test(found ?? "") && Date.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    found = await read();
  }
  assert.match(found ?? "", pattern);
}

/** Goes on with the keyboard until the focus is on this, as somebody without a mouse does. */
async function tabTo(page, name) {
  for (let presses = 0; presses < 60; presses += 1) {
    const there = await page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent);
    if (there === name) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`the keyboard does not reach "${name}"`);
}

const rounds = async (page) => Number(await page.locator("main progress").first().getAttribute("value"));

const page = await open();
await step("the token is taken out of the address and kept for the tab alone", async () => {
  await page.goto(CONSORTIA_URL);
  await page.getByRole("heading", { name: "Runs", level: 1 }).waitFor();
  assert.equal(page.url(), `${origin}/#/runs`);
  assert.equal(await page.evaluate(() => sessionStorage.getItem("consortia.token")), token);
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage)), "{}");
  await page.locator("#line-text", { hasText: "Live" }).waitFor();
});

await step("a page without a token asks for it, and does not take a wrong one", async () => {
  const other = await open();
  await other.goto(origin);
  await other.getByRole("heading", { name: "Sign in" }).waitFor();
  await accessible(other, "the sign-in");
  away = true;
  await other.getByLabel("Token").fill("00000000000000000000000000000000");
  await other.keyboard.press("Enter");
  await other.getByText("does not take this token").waitFor();
  away = false;
  await other.getByLabel("Token").fill(token);
  await other.keyboard.press("Enter");
  await other.getByRole("heading", { name: "Runs", level: 1 }).waitFor();
  await other.context().close();
});

await step("a mistake in a plan is said with its line, and nothing is handed in", async () => {
  await page.getByRole("button", { name: "Submit a plan" }).first().click();
  const text = page.getByLabel("Or its text");
  await text.fill("name = \"x\"\nrounds = 0\n");
  away = true;
  await page.getByRole("dialog").getByRole("button", { name: "Submit" }).click();
  await page.getByRole("dialog").getByText(/line \d/).waitFor();
  away = false;
  await accessible(page, "the dialog of a plan");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
});

await step("a plan's file becomes a run that is drawn while it goes on", async () => {
  await page.getByRole("button", { name: "Submit a plan" }).first().click();
  await page.getByLabel("The plan's file").setInputFiles(CONSORTIA_PLAN);
  await page.waitForFunction(() => document.querySelector("#plan")?.value.includes("rounds"));
  await page.getByRole("dialog").getByRole("button", { name: "Submit" }).click();
  await is(page, "Running");
  await page.waitForFunction(() => Number(document.querySelector("main progress")?.value) >= 3);
  const before = await rounds(page);
  await page.waitForFunction((seen) => Number(document.querySelector("main progress")?.value) > seen, before);
  await page.locator("figure", { hasText: "Accuracy by site" }).locator("canvas").waitFor();
  // The same numbers for whoever does not see curves.
  const accuracy = page.locator("figure").filter({ has: page.getByRole("heading", { name: "Accuracy", exact: true }) });
  await accuracy.locator("summary").click();
  await accuracy.locator("tbody tr").first().waitFor();
  // What sites measure of a round comes after the round, and the page draws it later still.
  const oldest = accuracy.locator("tbody tr").last().locator("td").first();
  await comes(() => oldest.textContent(), /^\d+\.\d %$/);
  await comes(() => accuracy.locator("[role=img]").getAttribute("aria-label"), /^Accuracy, round \d+: Sites' test records \d/);
  await accuracy.locator("summary").click();
  await page.waitForFunction(() => Number(document.querySelector("main progress")?.value) >= 25);
});
const run = page.url();

await step("a run is paused and resumed with the keyboard, after a question that names it", async () => {
  await page.locator("#skip").focus();
  await page.keyboard.press("Enter");
  await tabTo(page, "Pause");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog", { name: "Pause: ward-model" }).waitFor();
  // The focus stays in the dialog.
  for (let presses = 0; presses < 6; presses += 1) {
    await page.keyboard.press("Tab");
    assert.ok(await page.evaluate(() => document.activeElement === document.body || document.querySelector("dialog")?.contains(document.activeElement)));
  }
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal(await state(page).textContent(), "Running");
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Pause", "the focus comes back");
  await page.keyboard.press("Enter");
  await accessible(page, "a question");
  await tabTo(page, "Pause");
  await page.keyboard.press("Enter");
  await is(page, "Paused");
  await accessible(page, "a paused run");
  await tabTo(page, "Resume");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, "Resume");
  await page.keyboard.press("Enter");
  await is(page, "Running");
});

await step("a run in both themes, and on a telephone", async () => {
  await accessible(page, "a run");
  await fits(page, "a run");
  await page.evaluate(() => scrollTo(0, 0));
  await picture(page, "run");
  const small = await open({ viewport: { width: 390, height: 844 }, colorScheme: "dark" });
  await small.goto(CONSORTIA_URL);
  await small.locator("tbody tr").first().waitFor();
  for (const view of ["runs", "sites", "privacy", "audit"]) {
    await small.goto(`${origin}/#/${view}`);
    await small.waitForTimeout(300);
    await fits(small, `${view} at 390 pixels`);
  }
  await small.goto(run);
  await small.locator("canvas").first().waitFor();
  assert.ok(await small.evaluate(() => !document.querySelector("#main")?.textContent.includes("undefined")));
  await fits(small, "a run at 390 pixels");
  await accessible(small, "a run at 390 pixels");
  await small.emulateMedia({ colorScheme: "dark" });
  await picture(small, "telephone");
  await small.context().close();
});

await step("a theme that is chosen stays", async () => {
  const button = page.locator("#theme");
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await button.click();
  await button.click();
  assert.equal(await button.textContent(), "Theme: dark");
  const dark = await ground();
  assert.notEqual(dark, light);
  await page.reload();
  await page.locator("#line-text", { hasText: "Live" }).waitFor();
  assert.equal(await ground(), dark);
  await page.locator("canvas").first().waitFor();
  await button.click();
  assert.equal(await ground(), light);
});

await step("a run is stopped with the keyboard, and what is over cannot be stopped again", async () => {
  await page.locator("#skip").focus();
  await page.keyboard.press("Enter");
  await tabTo(page, "Stop");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog", { name: "Stop: ward-model" }).waitFor();
  await tabTo(page, "Stop");
  await page.keyboard.press("Enter");
  await is(page, "Stopped");
  await page.getByText("Stop now").waitFor({ state: "detached" });
  assert.ok((await rounds(page)) >= 25);
});

await step("a site is invited, and its line shown once", async () => {
  await page.getByRole("link", { name: "Sites" }).click();
  await page.getByRole("button", { name: "Invite sites" }).first().click();
  await page.getByLabel(/^Names/).fill("east");
  await page.getByLabel(/^Where sites/).fill("fed.example.org:4433");
  await page.getByRole("button", { name: "Make invites" }).click();
  assert.match(await page.getByRole("dialog").locator("pre").textContent(), /^consortia site join consortia-invite-/);
  await accessible(page, "an invite");
  await page.keyboard.press("Escape");
  await page.getByRole("row", { name: /^east Invited/ }).waitFor();
});

await step("a site is quarantined with a reason that is shown, and released", async () => {
  await page.getByRole("row", { name: /^va Member.*Connected/ }).waitFor();
  await page.getByRole("button", { name: "Quarantine va" }).click();
  const dialog = page.getByRole("dialog", { name: "Quarantine va" });
  await dialog.getByRole("textbox").fill("odd norms");
  await accessible(page, "a quarantine");
  await dialog.getByRole("button", { name: "Quarantine" }).click();
  await page.getByRole("row", { name: /^va Quarantine.*odd norms.*Connected/ }).waitFor();
  await page.getByRole("button", { name: "Release va" }).click();
  await page.getByRole("dialog", { name: "Release va" }).getByRole("button", { name: "Release" }).click();
});

await step("a site is revoked once its name is typed, and its connection ends", async () => {
  await page.getByRole("row", { name: /^va Member.*Connected/ }).waitFor();
  await accessible(page, "the sites");
  await picture(page, "sites");
  await page.getByRole("button", { name: "Revoke va" }).click();
  const dialog = page.getByRole("dialog", { name: "Revoke va" });
  const revoke = dialog.getByRole("button", { name: "Revoke" });
  assert.ok(await revoke.isDisabled());
  await page.keyboard.type("hungarian");
  assert.ok(await revoke.isDisabled());
  await dialog.getByRole("textbox").fill("va");
  await page.keyboard.press("Enter");
  await page.getByRole("row", { name: /^va Revoked.*Away/ }).waitFor();
  assert.equal(await page.getByRole("button", { name: "Revoke va" }).count(), 0);
});

await step("a budget shows what was spent of it", async () => {
  await page.getByRole("link", { name: "Privacy" }).click();
  await page.getByRole("region", { name: "wards" }).waitFor();
  const spent = Number(await page.locator("meter").getAttribute("value"));
  const budget = Number(await page.locator("meter").getAttribute("max"));
  assert.ok(spent > 0 && spent < budget && budget === 4, `${spent} of ${budget}`);
  await page.locator("canvas").waitFor();
  await accessible(page, "the budgets");
  await picture(page, "privacy");
});

await step("the audit log tells what was done here, page by page", async () => {
  await page.getByRole("link", { name: "Audit log" }).click();
  await page.getByRole("row", { name: /revoked.*client va/ }).waitFor();
  const lines = () => page.locator("tbody tr").count();
  const before = await lines();
  await page.getByRole("button", { name: "Older records" }).click();
  await page.waitForFunction((seen) => document.querySelectorAll("tbody tr").length > seen, before);
  await accessible(page, "the audit log");
});

await step("a run that is not here is said so, for as long as it is looked at", async () => {
  away = true;
  await page.goto(`${origin}/#/runs/0000000000000007`);
  await page.getByText("There is no run 0000000000000007 here.").waitFor();
  await page.waitForTimeout(3000);
  assert.ok(await page.locator("#banner").isVisible());
  away = false;
});

await step("all runs are listed", async () => {
  await page.getByRole("link", { name: "Runs", exact: true }).click();
  await page.getByRole("row", { name: /^ward-model.*Stopped/ }).waitFor();
  await page.getByRole("row", { name: /^ward-private.*Finished/ }).waitFor();
  assert.ok(await page.locator("#banner").isHidden());
  await accessible(page, "the runs");
  await picture(page, "runs");
});

await step("a private run shows its promise, what was spent and the statement of its model", async () => {
  await page.getByRole("link", { name: "ward-private" }).click();
  const privacy = page.getByRole("region", { name: "Privacy of this run" });
  const facts = await privacy.locator("dl").innerText();
  for (const said of [/Protects\s+one site as a whole/, /Epsilon\s+[0-3]\.\d+ of 4/, /Delta\s+1e-5/, /Noise multiplier\s+12/, /Population\s+wards/]) assert.match(facts, said);
  await privacy.getByText("Privacy statement of the last model").click();
  await privacy.getByText(/^Epsilon [0-3]\.\d+ at delta 1e-5/).waitFor();
  await privacy.getByText("Outside of every claim").waitFor();
  await accessible(page, "a private run");
  await fits(page, "a private run");
  await page.getByRole("link", { name: "All runs" }).click();
});

await step("a run that was stopped before it began shows no empty curves and no empty table", async () => {
  await page.getByRole("link", { name: "ward-waiting" }).click();
  await page.getByText("No site took part.").waitFor();
  for (const empty of [".chart", "table"]) assert.equal(await page.locator(`main ${empty} >> visible=true`).count(), 0, empty);
  await page.getByText("model it began with").waitFor();
  await page.getByRole("link", { name: "All runs" }).click();
  await page.getByRole("row", { name: /^ward-waiting.*Stopped by the operator/ }).waitFor();
});

await step("a moment says in which zone it is", async () => {
  const far = await open({ timezoneId: "Asia/Kathmandu" });
  await far.goto(CONSORTIA_URL);
  await far.getByRole("link", { name: "Audit log" }).click();
  await far.locator("tbody tr").first().waitFor();
  assert.match(await far.locator("tbody tr").first().innerText(), /\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\+5:45/);
  await far.context().close();
});

await step("a telephone shows why a run ended", async () => {
  const small = await open({ viewport: { width: 390, height: 844 } });
  await small.goto(CONSORTIA_URL);
  await small.getByRole("row", { name: /^ward-waiting/ }).getByText("Stopped by the operator").waitFor();
  await small.getByRole("row", { name: /^ward-private/ }).getByText("20 / 20").waitFor();
  await fits(small, "the runs at 390 pixels");
  await small.context().close();
});

await step("a lost line is said, and comes back by itself", async () => {
  const told = createInterface({ input: process.stdin });
  const next = () => new Promise((resolve) => { told.once("line", resolve); });
  away = true;
  let heard = next();
  console.log("lose");
  assert.equal(await heard, "lost");
  await page.getByText("The line to the server is lost").waitFor();
  await accessible(page, "a lost line");
  heard = next();
  console.log("return");
  assert.equal(await heard, "returned");
  await page.getByRole("button", { name: "Try now" }).click().catch(() => {});
  await page.locator("#line-text", { hasText: "Live" }).waitFor();
  await page.locator("#banner").waitFor({ state: "hidden" });
  told.close();
});

assert.deepEqual(faults, []);
await browser.close();
console.log("done");
process.exit(0);
