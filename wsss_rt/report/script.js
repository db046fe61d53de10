"use strict";
(function () {
  var controls = document.querySelector(".controls");
  var gallery = document.querySelector(".gallery");
  var cards = Array.prototype.slice.call(gallery.children);
  var shown = document.getElementById("shown");
  var dialog = document.querySelector("dialog");
  var large = dialog.querySelector(".large");

  function missing(image) {
    var note = document.createElement("span");
    note.className = "missing";
    note.textContent = "The preview of this image lies in the folder report/ beside this file.";
    image.replaceWith(note);
  }

  cards.forEach(function (card) {
    var image = card.querySelector("img");
    if (image.complete && image.naturalWidth === 0 && image.loading !== "lazy") missing(image);
    image.addEventListener("error", function () { missing(image); });
    card.querySelector("button").addEventListener("click", function () {
      var picture = card.querySelector("img");
      if (!picture) return;
      var copy = picture.cloneNode();
      copy.loading = "eager";
      large.replaceChildren(copy, card.querySelector("figcaption").cloneNode(true));
      dialog.showModal();
    });
  });
  dialog.addEventListener("click", function (event) { if (event.target === dialog) dialog.close(); });

  function holds(list, value) { return (" " + list + " ").indexOf(" " + value + " ") >= 0; }

  function update() {
    var chosen = controls.elements;
    var text = chosen.text.value.toLowerCase();
    var order = chosen.order.value;
    var count = 0;
    var sorted = cards.slice().sort(function (a, b) {
      if (order === "name") return a.dataset.name < b.dataset.name ? -1 : 1;
      var difference = Number(a.dataset.rank) - Number(b.dataset.rank);
      return order === "high" ? -difference : difference;
    });
    sorted.forEach(function (card) {
      var wanted = (!chosen.class.value || holds(card.dataset.classes, chosen.class.value)) &&
        (!chosen.flag.value || holds(card.dataset.flags, chosen.flag.value)) &&
        (order !== "sample" || "sample" in card.dataset) &&
        card.dataset.name.toLowerCase().indexOf(text) >= 0;
      card.hidden = !wanted;
      if (wanted) count += 1;
      gallery.appendChild(card);
    });
    shown.textContent = count === cards.length ? "" : "Showing " + count + " of these. ";
  }

  controls.addEventListener("input", update);
  controls.addEventListener("submit", function (event) { event.preventDefault(); });
  controls.hidden = false;
}());
