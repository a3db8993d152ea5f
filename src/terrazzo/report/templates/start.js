// Slices are opened when they come into sight, so that a page with many is quick; printing shows all there is to read.
function start() {
  const sections = [...document.querySelectorAll("section.slice")];
  const fail = (section, text) => {
    const place = section.querySelector(".problem");
    place.textContent = text;
    place.hidden = false;
    section.classList.remove("live");
    section.querySelector(".viewer").hidden = true;
  };
  const foundSection = document.getElementById("found");
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => {
      const folded = document.querySelector(`${link.getAttribute("href")} > details`);
      if (folded) folded.open = true;
    });
  }
  if (typeof DecompressionStream === "undefined") {
    sections.forEach((section) => fail(section, "This browser is too old to unpack the data: the picture below is a still one."));
    return;
  }
  if (foundSection) {
    foundSection.overview = new Overview(foundSection, sections);
    foundSection.overview.open().catch((error) => {
      const place = foundSection.querySelector(".problem");
      place.textContent = `The pictures could not be drawn (${error.message}).`;
      place.hidden = false;
      throw error; // for the console
    });
  }
  const open = (section) => {
    section.viewer = new Viewer(section, held.slices[Number(section.dataset.slice)]);
    section.viewer.open().catch((error) => {
      fail(section, `This slice could not be drawn (${error.message}): the picture below is a still one.`);
      throw error; // for the console
    });
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      watch.unobserve(entry.target);
      open(entry.target);
    }
  }, { rootMargin: "300px" });
  sections.forEach((section) => watch.observe(section));

  let shut = [];
  window.addEventListener("beforeprint", () => {
    shut = [...document.querySelectorAll("details:not([open])")];
    shut.forEach((one) => { one.open = true; });
    sections.forEach((section) => section.dataset.ready && section.viewer.photograph());
  });
  window.addEventListener("afterprint", () => shut.forEach((one) => { one.open = false; }));
}

start();
