// The console's page: the screen through noVNC, the buttons, the live panel, and where to go when something ends.

import RFB from "./novnc/core/rfb.js";
import { setState, show } from "./panel.js";

const byId = (id) => document.getElementById(id);
const FIRST_WAIT = 500;      // milliseconds before the first new attempt; each later one waits twice as long
const LONGEST_WAIT = 8000;

// The token has become a cookie. Out of the address bar it cannot be read over a shoulder, or be bookmarked.
history.replaceState(null, "", location.pathname);

const base = `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}`;
let rfb = null;
let leaving = false;
let viewOnly = false;

function notice(text, link) {
    const place = byId("notice");
    place.textContent = text;
    if (link) {
        const anchor = document.createElement("a");
        anchor.href = link;
        anchor.textContent = "Open it.";
        place.append(" ", anchor);
    }
    place.hidden = !text;
}

// --- when the machine moves ---------------------------------------------------------------------------------------

function follow(address) {
    let target;
    try {
        target = new URL(address);
    } catch {
        target = null;
    }
    if (leaving || !target || !["http:", "https:"].includes(target.protocol)) {
        return;
    }
    leaving = true;
    notice(`The machine has moved to ${target.hostname}; its console there is being opened.`, target.href);
    location.replace(target.href);
    // A place that cannot be reached leaves this page standing.
    setTimeout(() => { leaving = false; }, LONGEST_WAIT);
}

// --- the screen ---------------------------------------------------------------------------------------------------

function applySizing() {
    if (!rfb) {
        return;
    }
    const how = byId("sizing").value;
    rfb.scaleViewport = how === "scale";
    rfb.resizeSession = how === "resize";
    rfb.clipViewport = how === "exact";
    rfb.dragViewport = false;
}

function retrying(open) {
    let wait = FIRST_WAIT;
    return {
        again() {
            setTimeout(open, wait);
            wait = Math.min(wait * 2, LONGEST_WAIT);
        },
        works() {
            wait = FIRST_WAIT;
        },
    };
}

const screenRetry = retrying(openScreen);
let refused = "";

function openScreen() {
    if (leaving) {
        return;
    }
    refused = "";
    rfb = new RFB(byId("screen"), `${base}/vnc`, { wsProtocols: ["binary"], shared: true });
    rfb.viewOnly = viewOnly;
    rfb.background = "#000";
    applySizing();
    rfb.addEventListener("connect", () => {
        screenRetry.works();
        notice("");
        byId("ctrl-alt-del").disabled = viewOnly;
        rfb.focus();
    });
    rfb.addEventListener("disconnect", (event) => {
        rfb = null;
        byId("ctrl-alt-del").disabled = true;
        if (leaving) {
            return;
        }
        if (refused) {
            notice(`${refused} Reload the page to try again.`);
            return;
        }
        notice(event.detail.clean
            ? "The screen's connection was closed; trying again."
            : "The screen cannot be reached: the machine has ended, the network fails, or the page's token is of "
              + "another start of the machine. Trying again.");
        screenRetry.again();
    });
    rfb.addEventListener("securityfailure", (event) => {
        refused = `The screen refused this viewer: ${event.detail.reason || "wrong password"}.`;
    });
    rfb.addEventListener("credentialsrequired", (event) => askCredentials(event.detail.types));
    rfb.addEventListener("serververification", async (event) => {
        const digest = await crypto.subtle.digest("SHA-1", event.detail.publickey);
        const print = Array.from(new Uint8Array(digest).slice(0, 8), (each) => each.toString(16).padStart(2, "0"));
        if (confirm(`Is ${print.join("-")} the fingerprint of the machine's key?`)) {
            rfb.approveServer();
        } else {
            refused = "The machine's key was not accepted.";
            rfb.disconnect();
        }
    });
    rfb.addEventListener("clipboard", (event) => { byId("clipboard-text").value = event.detail.text; });
    window.tvmmConsole = { rfb };
}

function askCredentials(types) {
    byId("user-row").hidden = !types.includes("username");
    byId("password-row").hidden = !types.includes("password");
    byId("credentials").showModal();
}

byId("credentials").addEventListener("close", () => {
    if (!rfb) {
        return;
    }
    rfb.sendCredentials({ username: byId("user").value, password: byId("password").value });
    byId("password").value = "";
});

// --- the panel ----------------------------------------------------------------------------------------------------

const panelRetry = retrying(openPanel);

function openPanel() {
    const socket = new WebSocket(`${base}/panel`);
    socket.addEventListener("message", (event) => {
        panelRetry.works();
        const figures = JSON.parse(event.data);
        if (figures.moved) {
            follow(figures.moved);
        }
        show(figures);
    });
    socket.addEventListener("close", () => {
        setState("not connected", "lost");
        panelRetry.again();
    });
}

// --- buttons ------------------------------------------------------------------------------------------------------

function toggle(button, place) {
    byId(button).addEventListener("click", () => {
        byId(place).hidden = !byId(place).hidden;
        byId(button).setAttribute("aria-expanded", String(!byId(place).hidden));
    });
}

toggle("show-clipboard", "clipboard");
toggle("show-panel", "panel");

byId("ctrl-alt-del").addEventListener("click", () => {
    rfb?.sendCtrlAltDel();
    rfb?.focus();
});

byId("view-only").addEventListener("click", () => {
    viewOnly = !viewOnly;
    byId("view-only").setAttribute("aria-pressed", String(viewOnly));
    byId("ctrl-alt-del").disabled = viewOnly || !rfb;
    if (rfb) {
        rfb.viewOnly = viewOnly;
    }
});

byId("sizing").addEventListener("change", applySizing);

byId("clipboard-text").addEventListener("change", () => rfb?.clipboardPasteFrom(byId("clipboard-text").value));

byId("full-screen").addEventListener("click", async () => {
    try {
        if (document.fullscreenElement) {
            await document.exitFullscreen();
        } else {
            await byId("screen").requestFullscreen({ navigationUI: "hide" });
            await navigator.keyboard?.lock?.();   // Escape and Alt-Tab go to the guest where the browser can do that
        }
    } catch (error) {
        notice(`The browser does not show this in full screen: ${error.message}`);
    }
    rfb?.focus();
});

openScreen();
openPanel();
