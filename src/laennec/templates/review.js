if (window.laennecPlay) return;
const find = (what) => document.querySelector(`#review ${what}`);
let stop = 0, key = "", touched = false, answered = "", answered_ms = 0;
window.laennecPlay = (share) => {  // play from this share of the clip to its end, or without a share the span
  const sound = find("audio"), box = find("section").dataset;
  if (!sound) return;
  sound.currentTime = share === undefined ? +box.from : share * box.duration;
  stop = share === undefined ? +box.to : +box.duration;
  sound.play().catch(() => {});
};
window.laennecSeen = (given) => {
  document.activeElement?.blur();  // otherwise the space bar would press the button again
  return [find("section")?.dataset.key ?? "", ...given.slice(1)];
};
const draw = () => {
  const sound = find("audio"), box = find("section")?.dataset;
  if (sound && box) {
    if (key !== box.key) {
      key = box.key;
      if (touched) window.laennecPlay();
    }
    if (!sound.paused && sound.currentTime >= stop) sound.pause();
    if (sound.currentTime > 0) find(".cursor").style.left = `${(100 * sound.currentTime) / box.duration}%`;
  }
  requestAnimationFrame(draw);
};
requestAnimationFrame(draw);
// answers can arrive out of order, so a second press on the same span within 5 s is ignored
document.addEventListener("click", (event) => {
  if (!event.target.closest(".review-buttons button")) return;
  const shown = find("section")?.dataset.key + find("section")?.innerText;
  if (answered === shown && Date.now() - answered_ms < 5000) event.stopImmediatePropagation();
  else [answered, answered_ms] = [shown, Date.now()];
}, true);
document.addEventListener("pointerdown", () => { touched = true; });
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !find("section")?.offsetParent) return;
  touched = true;
  const digit = event.code.match(/^(?:Digit|Numpad)([1-9])$/)?.[1];
  const name = digit ?? event.key.toLowerCase();
  const mark = digit && event.shiftKey && document.querySelectorAll("#review-marks input")[digit - 1];
  const button = { " ": find("#review-play"), p: find("#review-around") }[name] ?? document.getElementById(`review-${name}`);
  if (mark || button) {
    event.preventDefault();
    (mark || button).click();
  }
});
