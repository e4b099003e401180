{# Switches of the pictures. The page holds every picture without it; the script only shows one
   prediction per network in large and follows the switches. #}
"use strict";
(function () {
  const form = document.getElementById("sensors");
  if (!form) return;
  const boxes = Array.from(form.querySelectorAll("input[data-letter]"));
  const said = document.getElementById("sensors-said");
  const scores = JSON.parse(form.dataset.scores);
  const ignored = JSON.parse(form.dataset.ignored);

  function pixels(image) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height);
  }

  // mistakes keep the colour of the class that was predicted; right and ignored pixels go
  function onlyMistakes(shown, label) {
    for (let at = 0; at < shown.data.length; at += 4) {
      const is = (colour) => colour.every((value, k) => value === label.data[at + k]);
      if (is(shown.data.slice(at, at + 3)) || ignored.some(is)) shown.data[at + 3] = 0;
    }
    return shown;
  }

  function show(figure, kept, label, mistakes) {
    const canvas = figure.querySelector("canvas");
    canvas.hidden = !kept;
    figure.querySelector("b").textContent = chosen();
    figure.querySelector(".share").textContent = kept ? kept.dataset.share : "no picture";
    if (!kept) return;
    canvas.setAttribute("aria-label", kept.alt + (mistakes ? ", mistakes only" : ""));
    Promise.all([kept.decode(), label.decode()]).then(function () {
      const image = pixels(kept);
      canvas.width = image.width;
      canvas.height = image.height;
      canvas.getContext("2d").putImageData(mistakes ? onlyMistakes(image, pixels(label)) : image, 0, 0);
      canvas.dataset.subset = kept.dataset.subset;
    });
  }

  function chosen() {
    return boxes.filter((box) => box.checked).map((box) => box.dataset.letter).join("");
  }

  function update() {
    const subset = chosen();
    const mistakes = form.elements.show.value === "mistakes";
    said.textContent = subset + (scores[subset] ? ", all samples: " + scores[subset] : "");
    for (const sample of document.querySelectorAll(".sample")) {
      for (const figure of sample.querySelectorAll("[data-input]")) {
        figure.classList.toggle("off", !subset.includes(figure.dataset.input));
      }
      const label = sample.querySelector(".label img");
      const images = Array.from(sample.querySelectorAll(".kept img"));
      for (const figure of sample.querySelectorAll(".live figure")) {
        const kept = images.find(
          (image) => image.dataset.model === figure.dataset.model && image.dataset.subset === subset
        );
        show(figure, kept, label, mistakes);
      }
    }
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", function (event) {
    if (!chosen()) {
      event.target.checked = true; // a network needs one sensor
      update();
      said.textContent = "One sensor has to stay on: " + said.textContent;
    } else {
      update();
    }
  });
  form.reset(); // some browsers keep the switches of an earlier visit
  form.hidden = false;
  for (const live of document.querySelectorAll(".live")) live.hidden = false;
  for (const kept of document.querySelectorAll(".kept")) kept.open = false;
  update();
})();
