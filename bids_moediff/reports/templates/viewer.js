"use strict";
// A viewer for the volumes in this page: three planes, each volume drawn with its own voxels.
(function () {
  // Axes of each plane: across and up on the screen, then the one that it is scrolled along.
  const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };
  const LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };
  const WORDS = { input: "Input", cubic: "Cubic interpolation", result: "Super-resolved" };
  const POLE = Math.sqrt(3) - 2; // of the cubic B-spline's prefilter

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // ---------------------------------------------------------------- volumes

  // The inverse of pack() in reports/viewer.py.
  async function unpack(text, shape) {
    const binary = atob(text.trim());
    const packed = new Uint8Array(binary.length);
    for (let i = 0; i < packed.length; i++) { packed[i] = binary.charCodeAt(i); }
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    const [nx, ny, nz] = shape, row = nx, slab = nx * ny;
    for (let z = 0, i = 0; z < nz; z++) {
      for (let y = 0; y < ny; y++) {
        for (let x = 0; x < nx; x++, i++) {
          const a = x ? voxels[i - 1] : 0, b = y ? voxels[i - row] : 0;
          const c = z ? voxels[i - slab] : 0;
          const pairs = (x && y ? voxels[i - row - 1] : 0) + (x && z ? voxels[i - slab - 1] : 0)
            + (y && z ? voxels[i - slab - row] : 0);
          const forecast = Math.floor((2 * (a + b + c) - pairs + 1) / 3);
          voxels[i] += clamp(forecast, 0, 255);
        }
      }
    }
    return voxels;
  }

  function place(volume, axis, position) {
    const index = Math.floor((position - volume.start[axis]) / volume.zooms[axis]);
    return clamp(index, 0, volume.shape[axis] - 1);
  }

  function strides(shape) { return [1, shape[0], shape[0] * shape[1]]; }

  // Values of the slice that holds a position: rows of `up`, columns of `across`.
  function slice(volume, plane, position) {
    const [across, up, normal] = PLANES[plane], step = strides(volume.shape);
    const width = volume.shape[across], height = volume.shape[up];
    const first = place(volume, normal, position) * step[normal];
    const values = new Uint8Array(width * height);
    for (let y = 0, i = 0; y < height; y++) {
      let from = first + y * step[up];
      for (let x = 0; x < width; x++, i++, from += step[across]) { values[i] = volume.data[from]; }
    }
    return values;
  }

  // Coefficients of the cubic B-spline through a volume; at its ends it is mirrored.
  function coefficients(volume) {
    const values = Float32Array.from(volume.data), step = strides(volume.shape);
    const total = values.length;
    for (let axis = 0; axis < 3; axis++) {
      const count = volume.shape[axis], stride = step[axis];
      if (count < 2) { continue; }
      const line = new Float64Array(count);
      for (let start = 0; start < total; start++) {
        if (Math.floor(start / stride) % count) { start += stride * (count - 1) - 1; continue; }
        filter(values, line, start, stride);
      }
    }
    return values;
  }

  function filter(values, line, start, stride) {
    const count = line.length;
    for (let i = 0; i < count; i++) { line[i] = 6 * values[start + i * stride]; }
    let sum = 0, power = 1;
    const period = 2 * count - 2;
    for (let i = 0; i < Math.min(28, period); i++, power *= POLE) {
      sum += power * line[i < count ? i : period - i];
    }
    line[0] = sum;
    for (let i = 1; i < count; i++) { line[i] += POLE * line[i - 1]; }
    line[count - 1] = (POLE / (POLE * POLE - 1)) * (line[count - 1] + POLE * line[count - 2]);
    for (let i = count - 2; i >= 0; i--) { line[i] = POLE * (line[i + 1] - line[i]); }
    for (let i = 0; i < count; i++) { values[start + i * stride] = line[i]; }
  }

  // Four voxels and their weights at a position in voxels.
  function taps(position, count) {
    const base = Math.floor(position), t = position - base, period = Math.max(1, 2 * count - 2);
    const weights = [(1 - t) ** 3 / 6, (3 * t ** 3 - 6 * t ** 2 + 4) / 6,
      (-3 * t ** 3 + 3 * t ** 2 + 3 * t + 1) / 6, t ** 3 / 6];
    return weights.map(function (weight, k) {
      let index = (((base + k - 1) % period) + period) % period;
      if (index >= count) { index = period - index; }
      return [clamp(index, 0, count - 1), weight];
    });
  }

  // A slice of the cubic interpolation of the input on the grid of the result.
  function cubicSlice(input, result, plane, position) {
    const [across, up, normal] = PLANES[plane], step = strides(input.shape);
    const at = (axis, index) => (result.start[axis] + (index + 0.5) * result.zooms[axis]
      - input.start[axis]) / input.zooms[axis] - 0.5;
    const width = input.shape[across], height = input.shape[up];
    const flat = new Float32Array(width * height);
    const here = at(normal, place(result, normal, position));
    for (const [index, weight] of taps(here, input.shape[normal])) {
      for (let y = 0, i = 0; y < height; y++) {
        let from = index * step[normal] + y * step[up];
        for (let x = 0; x < width; x++, i++, from += step[across]) {
          flat[i] += weight * input.spline[from];
        }
      }
    }
    const wide = result.shape[across], tall = result.shape[up];
    const columns = Array.from({ length: wide }, (_, x) => taps(at(across, x), width));
    const rows = Array.from({ length: tall }, (_, y) => taps(at(up, y), height));
    const half = new Float32Array(wide * height), values = new Uint8Array(wide * tall);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < wide; x++, i++) {
        for (const [index, weight] of columns[x]) { half[i] += weight * flat[y * width + index]; }
      }
    }
    for (let y = 0, i = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++, i++) {
        let sum = 0;
        for (const [index, weight] of rows[y]) { sum += weight * half[index * wide + x]; }
        values[i] = clamp(Math.round(sum), 0, 255);
      }
    }
    return values;
  }

  // ---------------------------------------------------------------- the viewer

  class Viewer {
    constructor(root) {
      this.root = root;
      this.meta = JSON.parse(root.querySelector(".description").textContent);
      this.volumes = {};
      this.zoom = 1;
      this.share = 0.5;
      this.position = [...this.meta.position];
      this.middle = this.meta.low.map((low, axis) => (low + this.meta.high[axis]) / 2);
      this.sheet = document.createElement("canvas"); // where a slice is put, voxel by voxel
      this.slices = new Map();
    }

    async load() {
      for (const [name, about] of Object.entries(this.meta.volumes)) {
        const holder = this.root.querySelector(`script[data-volume="${name}"]`);
        const data = await unpack(holder.textContent, about.shape);
        if (about.gain !== 1) { data.forEach((value, i) => { data[i] = value * about.gain; }); }
        this.volumes[name] = { ...about, data: data };
        holder.remove(); // the text is large and not needed any more
      }
      this.volumes.cubic = { ...this.volumes.result, data: null };
      this.scale = this.volumes.input;
      this.window = this.meta.window.map((value) => this.grey(value));
      this.listen();
      this.root.classList.add("live");
      new ResizeObserver(() => this.draw()).observe(this.root.querySelector(".planes"));
      this.reset();
    }

    // Grey level (0 to 255) of an intensity, and back.
    grey(value) { return 255 * (value - this.scale.low) / (this.scale.high - this.scale.low); }
    intensity(grey) { return this.scale.low + grey / 255 * (this.scale.high - this.scale.low); }

    get(name) { return this.root.querySelector(`[name="${name}"]`); }
    canvases() { return [...this.root.querySelectorAll("canvas[data-plane]")]; }

    reset() {
      this.position = [...this.meta.position];
      this.middle = this.meta.low.map((low, axis) => (low + this.meta.high[axis]) / 2);
      this.zoom = 1;
      this.window = this.meta.window.map((value) => this.grey(value));
      this.share = 0.5;
      this.settle();
    }

    // Keep numbers within their limits, show them in the controls and draw.
    settle() {
      const { low, high } = this.meta;
      this.zoom = clamp(this.zoom, 1, 16);
      this.share = clamp(this.share, 0, 1);
      for (let axis = 0; axis < 3; axis++) {
        this.position[axis] = clamp(this.position[axis], low[axis] + 1e-3, high[axis] - 1e-3);
        const half = (high[axis] - low[axis]) / 2 / this.zoom;
        this.middle[axis] = clamp(this.middle[axis], low[axis] + half, high[axis] - half);
      }
      this.window[0] = clamp(this.window[0], 0, 250);
      this.window[1] = clamp(this.window[1], this.window[0] + 4, 255);
      this.get("zoom").value = Math.log2(this.zoom);
      this.get("swipe").value = Math.round(100 * this.share);
      this.get("darkest").value = Math.round(this.window[0]);
      this.get("brightest").value = Math.round(this.window[1]);
      for (const canvas of this.canvases()) {
        const axis = PLANES[canvas.dataset.plane][2], volume = this.volumes.result;
        const range = this.get(canvas.dataset.plane);
        range.max = volume.shape[axis] - 1;
        range.value = place(volume, axis, this.position[axis]);
        range.setAttribute("aria-valuetext", this.world(axis).toFixed(1) + " mm");
      }
      this.draw();
    }

    world(axis) {
      const row = this.meta.rotation[axis];
      return row.reduce((sum, share, k) => sum + share * this.position[k], 0);
    }

    draw() {
      if (this.waiting) { return; }
      this.waiting = requestAnimationFrame(() => {
        this.waiting = null;
        for (const canvas of this.canvases()) {
          if (canvas.offsetParent) { this.plane(canvas); }
        }
        this.report();
      });
    }

    // The slice of a volume that is shown; the latest one of each plane and volume is kept.
    values(name, plane) {
      const normal = PLANES[plane][2], volume = this.volumes[name];
      const index = place(volume, normal, this.position[normal]), key = name + plane;
      const kept = this.slices.get(key);
      if (kept && kept.index === index) { return kept.values; }
      let values;
      if (name === "cubic") {
        const input = this.volumes.input;
        input.spline = input.spline || coefficients(input);
        values = cubicSlice(input, this.volumes.result, plane, this.position[normal]);
      } else {
        values = slice(volume, plane, this.position[normal]);
      }
      this.slices.set(key, { index: index, values: values });
      return values;
    }

    // Pixels per mm, and the place on the canvas of a position in mm.
    view(canvas) {
      const [across, up] = PLANES[canvas.dataset.plane], { low, high } = this.meta;
      const scale = this.zoom * Math.min(canvas.width / (high[across] - low[across]),
        canvas.height / (high[up] - low[up]));
      return {
        scale: scale,
        x: (mm) => canvas.width / 2 + (this.middle[across] - mm) * scale,
        y: (mm) => canvas.height / 2 + (this.middle[up] - mm) * scale,
        across: (x) => this.middle[across] - (x - canvas.width / 2) / scale,
        up: (y) => this.middle[up] - (y - canvas.height / 2) / scale,
      };
    }

    // Put coloured voxels of a slice onto a canvas; colour(value, index) gives red to alpha.
    put(canvas, name, paint) {
      const plane = canvas.dataset.plane, volume = this.volumes[name];
      const [across, up] = PLANES[plane], values = this.values(name, plane);
      const width = volume.shape[across], height = volume.shape[up];
      this.sheet.width = width;
      this.sheet.height = height;
      const pen = this.sheet.getContext("2d", { willReadFrequently: false });
      const image = pen.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      paint(pixels, values, width, height);
      pen.putImageData(image, 0, 0);
      const view = this.view(canvas), context = canvas.getContext("2d");
      const left = view.x(volume.start[across]), top = view.y(volume.start[up]);
      context.imageSmoothingEnabled = false;
      context.save();
      // Right is at the viewer's left and the top of the head at the top: both axes run backwards.
      context.translate(left, top);
      context.scale(-view.scale * volume.zooms[across], -view.scale * volume.zooms[up]);
      context.drawImage(this.sheet, 0, 0);
      context.restore();
    }

    grid(canvas, name) {
      const [low, high] = this.window, table = new Uint32Array(256);
      for (let value = 0; value < 256; value++) {
        const shade = Math.round(255 * clamp((value - low) / (high - low), 0, 1));
        table[value] = 0xff000000 | (shade << 16) | (shade << 8) | shade;
      }
      this.put(canvas, name, function (pixels, values) {
        for (let i = 0; i < values.length; i++) { pixels[i] = table[values[i]]; }
      });
    }

    plane(canvas) {
      const box = canvas.getBoundingClientRect(), dots = window.devicePixelRatio || 1;
      const width = Math.round(box.width * dots), height = Math.round(box.height * dots);
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width;
        canvas.height = height;
      }
      const context = canvas.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      const [left, right] = this.pair(), edge = Math.round(this.share * width);
      this.part(canvas, left, 0, left === right ? width : edge);
      if (left !== right) { this.part(canvas, right, edge, width); }
      this.overlay(canvas);
      this.marks(canvas, dots, left === right ? null : edge);
    }

    pair() {
      const left = this.get("left").value, right = this.get("right").value;
      return this.flicker === undefined ? [left, right] : Array(2).fill([left, right][this.flicker]);
    }

    part(canvas, name, from, to) {
      const context = canvas.getContext("2d");
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, canvas.height);
      context.clip();
      this.grid(canvas, name);
      context.restore();
    }

    overlay(canvas) {
      const name = this.get("overlay").value, context = canvas.getContext("2d");
      if (!name) { return; }
      const table = new Uint32Array(256);
      const shade = (r, g, b, cover = 255) => (cover << 24) | (b << 16) | (g << 8) | r;
      if (name === "error") { // what is small stays clear
        this.meta.heat.forEach((c, v) => { table[v] = shade(...c, Math.min(255, 3 * v)); });
      }
      if (name === "expert") { this.meta.experts.forEach((c, k) => { table[k] = shade(...c); }); }
      context.save();
      context.globalAlpha = Number(this.get("opacity").value) / 100;
      this.put(canvas, name, function (pixels, values, width, height) {
        for (let y = 0, i = 0; y < height; y++) {
          for (let x = 0; x < width; x++, i++) {
            if (name !== "mask") { pixels[i] = table[values[i]]; continue; }
            const inside = x && y && x < width - 1 && y < height - 1 && values[i - 1]
              && values[i + 1] && values[i - width] && values[i + width];
            pixels[i] = values[i] && !inside ? shade(255, 80, 80) : 0;
          }
        }
      });
      context.restore();
    }

    // Crosshair, line of the swipe, sides of the patient, names and a bar of 20 mm.
    marks(canvas, dots, edge) {
      const context = canvas.getContext("2d"), { width, height } = canvas;
      const plane = canvas.dataset.plane, [across, up] = PLANES[plane], view = this.view(canvas);
      if (this.get("crosshair").checked) {
        const x = Math.round(view.x(this.position[across])), y = Math.round(view.y(this.position[up]));
        const gap = 9 * dots;
        context.fillStyle = "rgba(110, 220, 255, 0.9)";
        context.fillRect(x, 0, dots, Math.max(0, y - gap));
        context.fillRect(x, y + gap, dots, height);
        context.fillRect(0, y, Math.max(0, x - gap), dots);
        context.fillRect(x + gap, y, width, dots);
      }
      if (edge !== null) {
        context.fillStyle = "#ffd75e";
        context.fillRect(edge - dots, 0, 2 * dots, height);
        context.beginPath();
        context.arc(edge, height - 22 * dots, 9 * dots, 0, 7);
        context.fill();
      }
      const write = (words, x, y, align, colour) => {
        context.font = `600 ${12 * dots}px system-ui, sans-serif`;
        context.textAlign = align;
        context.lineWidth = 3 * dots;
        context.strokeStyle = "#000";
        context.fillStyle = colour || "#f2f2f2";
        context.strokeText(words, x, y);
        context.fillText(words, x, y);
      };
      const [first, second, top, bottom] = LETTERS[plane], pad = 6 * dots;
      write(first, pad, height / 2, "left", "#ffd75e");
      write(second, width - pad, height / 2, "right", "#ffd75e");
      write(top, width / 2, 30 * dots, "center", "#ffd75e");
      write(bottom, width / 2, height - pad, "center", "#ffd75e");
      const [left, right] = this.pair();
      write(WORDS[left], pad, 15 * dots, "left");
      if (left !== right) { write(WORDS[right], width - pad, 15 * dots, "right"); }
      const bar = [50, 20, 10, 5, 2, 1].find((mm) => mm * view.scale < width / 3) || 1;
      context.fillStyle = "#f2f2f2";
      context.fillRect(pad, height - pad, bar * view.scale, 2 * dots);
      write(`${bar} mm`, pad, height - pad - 5 * dots, "left");
    }

    // Where the crosshair is, and what the volumes hold there.
    report() {
      const parts = [[0, 1, 2].map((axis) => this.world(axis).toFixed(1)).join(", ") + " mm (RAS)"];
      const plane = "axial", at = (name) => {
        const volume = this.volumes[name], [across, up] = PLANES[plane];
        return this.values(name, plane)[place(volume, across, this.position[across])
          + volume.shape[across] * place(volume, up, this.position[up])];
      };
      const digits = Math.max(3, String(Math.round(this.scale.high)).length);
      const names = this.volumes.input.spline ? ["input", "cubic", "result"] : ["input", "result"];
      for (const name of names) {
        const beyond = at(name) === 255 ? "at least " : "";
        parts.push(`${WORDS[name]} ${beyond}${this.intensity(at(name)).toPrecision(digits)}`);
      }
      if (this.volumes.error) {
        const { low, high } = this.volumes.error;
        parts.push(`expected error ${(low + at("error") / 255 * (high - low)).toPrecision(2)}`);
      }
      if (this.volumes.expert) { parts.push(this.meta.names[at("expert")] || ""); }
      this.root.querySelector(".readout").textContent = parts.join(" · ");
      this.root.dataset.state = JSON.stringify({ position: this.position, zoom: this.zoom,
        share: this.share, window: this.window });
    }

    // -------------------------------------------------------------- input

    listen() {
      const on = (name, event, change) => {
        this.get(name).addEventListener(event, () => { change(this.get(name)); this.settle(); });
      };
      on("zoom", "input", (field) => { this.magnify(2 ** field.value / this.zoom); });
      on("swipe", "input", (field) => { this.share = field.value / 100; });
      on("darkest", "input", (field) => { this.window[0] = Math.min(field.value, this.window[1] - 4); });
      on("brightest", "input", (field) => { this.window[1] = Math.max(field.value, this.window[0] + 4); });
      for (const name of ["left", "right", "overlay", "crosshair"]) { on(name, "change", () => {}); }
      on("opacity", "input", () => {});
      on("planes", "change", (field) => { this.root.dataset.shown = field.value; });
      for (const canvas of this.canvases()) {
        const axis = PLANES[canvas.dataset.plane][2], volume = this.volumes.result;
        on(canvas.dataset.plane, "input", (field) => {
          this.position[axis] = volume.start[axis] + (Number(field.value) + 0.5) * volume.zooms[axis];
        });
        this.listenTo(canvas);
      }
      this.get("reset").addEventListener("click", () => this.reset());
      this.get("flicker").addEventListener("click", () => this.toggleFlicker());
      document.addEventListener("scroll", () => { this.scrolled = performance.now(); }, true);
      const phone = matchMedia("(max-width: 700px)").matches;
      if (phone) { this.get("planes").value = "axial"; }
      this.root.dataset.shown = this.get("planes").value;
    }

    toggleFlicker() {
      const button = this.get("flicker");
      if (this.timer) {
        clearInterval(this.timer);
        this.timer = this.flicker = undefined;
      } else {
        this.flicker = 0;
        this.timer = setInterval(() => { this.flicker = 1 - this.flicker; this.draw(); }, 700);
      }
      button.setAttribute("aria-pressed", String(Boolean(this.timer)));
      this.draw();
    }

    magnify(factor, across, up, axes) {
      const zoom = clamp(this.zoom * factor, 1, 16);
      [0, 1, 2].forEach((axis) => {
        // The point under the pointer stays where it is; elsewhere the crosshair does.
        const fixed = axes && axis === axes[0] ? across : axes && axis === axes[1] ? up
          : this.position[axis];
        this.middle[axis] = fixed + (this.middle[axis] - fixed) * this.zoom / zoom;
      });
      this.zoom = zoom;
    }

    scroll(canvas, steps) {
      const axis = PLANES[canvas.dataset.plane][2];
      this.position[axis] += steps * this.volumes.result.zooms[axis];
    }

    point(canvas, event) {
      const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
      return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    }

    listenTo(canvas) {
      const fingers = new Map();
      let drag = null, gathered = 0;
      const [across, up] = PLANES[canvas.dataset.plane];
      canvas.addEventListener("wheel", (event) => {
        // A page that is being scrolled past goes on scrolling.
        if (performance.now() - (this.scrolled || -1e9) < 250) { return; }
        event.preventDefault();
        if (event.ctrlKey || event.metaKey) {
          const [x, y] = this.point(canvas, event), view = this.view(canvas);
          this.magnify(2 ** (-event.deltaY / 250), view.across(x), view.up(y), [across, up]);
        } else {
          gathered += event.deltaMode ? 40 * event.deltaY : event.deltaY;
          const steps = Math.trunc(gathered / 40);
          gathered -= 40 * steps;
          this.scroll(canvas, clamp(-steps, -3, 3));
        }
        this.settle();
      }, { passive: false });
      canvas.addEventListener("contextmenu", (event) => event.preventDefault());
      canvas.addEventListener("pointerdown", (event) => {
        canvas.focus({ preventScroll: true });
        canvas.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, [event.clientX, event.clientY]);
        const [x] = this.point(canvas, event), [left, right] = this.pair();
        const near = left !== right && Math.abs(x - this.share * canvas.width)
          < 14 * (window.devicePixelRatio || 1);
        drag = event.button === 2 ? "window" : event.shiftKey || event.button === 1 ? "pan"
          : near ? "swipe" : "point";
        if (fingers.size === 1) { this.drag(canvas, drag, event, [0, 0]); }
      });
      canvas.addEventListener("pointermove", (event) => {
        const before = fingers.get(event.pointerId);
        if (!before) { return; }
        const now = [event.clientX, event.clientY];
        const spread = () => {
          const [a, b] = [...fingers.values()];
          return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
        };
        if (fingers.size === 2) {
          const was = spread();
          fingers.set(event.pointerId, now);
          this.magnify(spread() / was);
          this.drag(canvas, "pan", event, [(now[0] - before[0]) / 2, (now[1] - before[1]) / 2]);
        } else {
          fingers.set(event.pointerId, now);
          this.drag(canvas, drag, event, [now[0] - before[0], now[1] - before[1]]);
        }
      });
      for (const name of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
      }
      canvas.addEventListener("keydown", (event) => this.key(canvas, event));
    }

    drag(canvas, kind, event, [dx, dy]) {
      const [across, up] = PLANES[canvas.dataset.plane], view = this.view(canvas);
      const [x, y] = this.point(canvas, event), ratio = canvas.width / canvas.clientWidth;
      if (kind === "swipe") { this.share = x / canvas.width; }
      if (kind === "point") {
        this.position[across] = view.across(x);
        this.position[up] = view.up(y);
      }
      if (kind === "pan") {
        this.middle[across] += dx * ratio / view.scale;
        this.middle[up] += dy * ratio / view.scale;
      }
      if (kind === "window") {
        const centre = (this.window[0] + this.window[1]) / 2 + 0.5 * dy;
        const half = Math.max(2, (this.window[1] - this.window[0]) / 2 + 0.5 * dx);
        this.window = [centre - half, centre + half];
      }
      this.settle();
    }

    key(canvas, event) {
      if (event.ctrlKey || event.metaKey || event.altKey) { return; }
      const [across, up] = PLANES[canvas.dataset.plane], { zooms } = this.volumes.result;
      const move = (axis, steps) => { this.position[axis] += steps * zooms[axis]; };
      const overlay = (name) => {
        const field = this.get("overlay");
        if (this.volumes[name]) { field.value = field.value === name ? "" : name; }
      };
      const actions = event.shiftKey ? {
        ArrowLeft: () => move(across, 1), ArrowRight: () => move(across, -1),
        ArrowUp: () => move(up, 1), ArrowDown: () => move(up, -1), "+": () => this.magnify(1.25),
      } : {
        ArrowUp: () => this.scroll(canvas, 1), ArrowDown: () => this.scroll(canvas, -1),
        PageUp: () => this.scroll(canvas, 10), PageDown: () => this.scroll(canvas, -10),
        ArrowLeft: () => { this.share -= 0.05; }, ArrowRight: () => { this.share += 0.05; },
        "+": () => this.magnify(1.25), "=": () => this.magnify(1.25), "-": () => this.magnify(0.8),
        0: () => this.reset(), c: () => { this.get("crosshair").click(); },
        f: () => this.toggleFlicker(), m: () => overlay("mask"), u: () => overlay("error"),
        e: () => overlay("expert"),
      };
      const action = actions[event.key] || actions[event.key.toLowerCase()];
      if (!action) { return; }
      event.preventDefault();
      action();
      this.settle();
    }
  }

  // On paper a folded card cannot be opened.
  addEventListener("beforeprint", function () {
    const card = document.getElementById("card");
    if (card) { card.open = true; }
  });

  document.querySelectorAll(".viewer").forEach(function (root) {
    const viewer = root.viewer = new Viewer(root);
    viewer.load().catch(function (error) {
      // The pictures below stay: nothing is lost but the scrolling.
      root.querySelector(".trouble").textContent =
        "This browser cannot show the viewer (" + error.message + "); the pictures remain.";
    });
  });
})();
