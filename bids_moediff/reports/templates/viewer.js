"use strict";
document.querySelectorAll(".viewer").forEach(function (viewer) {
  viewer.classList.add("live");
  const compare = viewer.querySelector(".compare");
  const over = viewer.querySelector(".over");
  const range = viewer.querySelector("input[type=range]");
  const flicker = viewer.querySelector(".flicker");
  const select = viewer.querySelector("select");
  let timer = null;
  function cut(share) { compare.style.setProperty("--cut", share + "%"); }
  function stop() {
    if (timer) { clearInterval(timer); timer = null; }
    flicker.setAttribute("aria-pressed", "false");
    compare.classList.remove("plain");
    cut(range.value);
  }
  range.addEventListener("input", stop);
  compare.addEventListener("pointermove", function (event) {
    if (timer || event.buttons !== 1) { return; }
    const box = compare.getBoundingClientRect();
    range.value = Math.round(100 * (event.clientX - box.left) / box.width);
    cut(range.value);
  });
  compare.addEventListener("dragstart", function (event) { event.preventDefault(); });
  flicker.addEventListener("click", function () {
    if (timer) { stop(); return; }
    flicker.setAttribute("aria-pressed", "true");
    compare.classList.add("plain");
    let shown = false;
    cut(0);
    timer = setInterval(function () { shown = !shown; cut(shown ? 100 : 0); }, 800);
  });
  if (select) {
    select.addEventListener("change", function () {
      viewer.querySelector(".under").src = select.value;
    });
  }
  cut(range.value);
});
