// The sizes of operate.md, computed as it says there.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("sizes");
  if (!form) return;
  const compute = () => {
    const [n, tokens, bits, rate, cores, vector] = ["passages", "tokens", "bits", "rate", "cores", "vector"].map(
      (name) => Math.max(0, Number(form.elements[name].value)));
    const token = bits / 8 + 2.48 + (form.elements.text.checked ? 1.98 : 0) + (form.elements.words.checked ? 5.2 : 0);
    const bytes = n * (tokens * token + (vector ? vector / 8 + 2 : 0));
    const hours = n / (rate * cores) / 3600;
    const unit = bytes >= 1e12 ? [1e12, "TB"] : bytes >= 1e9 ? [1e9, "GB"] : [1e6, "MB"];
    form.elements.answer.value = `${(bytes / unit[0]).toFixed(1)} ${unit[1]} on disk, ${token.toFixed(2)} bytes a token; `
      + (hours < 2 ? `${Math.ceil(hours * 60)} minutes` : `${hours.toFixed(1)} hours`) + " to build";
  };
  form.addEventListener("input", compute);
  form.addEventListener("submit", (event) => event.preventDefault());
  compute();
});
