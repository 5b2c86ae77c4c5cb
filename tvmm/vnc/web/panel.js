// The live panel: one JSON message a second, shown. tvmm/vnc/web_panel.py says what is in a message.

const byId = (id) => document.getElementById(id);

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
    let unit = 0;
    while (count >= 1024 && unit < UNITS.length - 1) {
        count /= 1024;
        unit += 1;
    }
    return `${count < 10 && unit ? count.toFixed(1) : Math.round(count)} ${UNITS[unit]}`;
}

function cells(...texts) {
    const row = document.createElement("tr");
    for (const text of texts) {
        row.insertCell().textContent = text;
    }
    return row;
}

function load(share, index) {
    const row = document.createElement("div");
    row.className = "load";
    const number = document.createElement("span");
    number.textContent = index;
    const meter = document.createElement("meter");
    meter.value = Math.min(share, 1);
    const percent = document.createElement("span");
    percent.textContent = `${Math.round(share * 100)} %`;
    row.append(number, meter, percent);
    return row;
}

function showDevices(id, devices) {
    const rows = devices.map((each) => cells(each.name, `${bytes(each.in)}/s`, `${bytes(each.out)}/s`));
    byId(id).tBodies[0].replaceChildren(...rows);
    byId(id).parentElement.hidden = devices.length === 0;
}

function showMigration(migration) {
    byId("migration").hidden = !migration;
    if (!migration) {
        return;
    }
    byId("progress").value = migration.fraction;
    byId("progress").hidden = Boolean(migration.error);
    byId("migration-text").textContent = migration.error
        ? `The machine stayed here: ${migration.error}.`
        : `${migration.phase}: ${bytes(migration.transferred)} sent, ${bytes(migration.remaining)} to go, `
          + `${bytes(migration.throughput)}/s`;
}

export function setState(text, kind) {
    byId("state").textContent = text;
    byId("state").className = `badge ${kind}`;
}

export function show(figures) {
    byId("name").textContent = figures.name || "tvmm";
    document.title = `${figures.name || "tvmm"} - console`;
    setState(figures.detail ? `${figures.state}: ${figures.detail}` : figures.state, figures.state);
    byId("vcpus").replaceChildren(...(figures.vcpus || []).map(load));
    showDevices("disks", figures.disks || []);
    showDevices("nets", figures.nets || []);
    byId("viewers").textContent = figures.viewers;
    showMigration(figures.migration);
}
