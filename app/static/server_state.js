// The state of the server in the header of each page: whether it answers, and whether it is ready.

import { $ } from "./dom.js";
import { request } from "./server.js";

const EVERY = 5000; // milliseconds
let timer = 0;

// Ask the server now, and again every five seconds while the page is visible.
export async function checkServer() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      await request("v2/health/ready", { cache: "no-store" });
      show("ready", "Server ready");
    } catch (error) {
      if (error.status) show("waiting", "Server not ready");
      else show("away", "Server away");
    }
  }
  clearTimeout(timer); // of another check that ended meanwhile
  timer = setTimeout(checkServer, EVERY);
}

function show(state, text) {
  $("server").className = `server ${state}`;
  if ($("server").textContent !== text) $("server").textContent = text;
}

document.addEventListener("visibilitychange", checkServer);
checkServer();
