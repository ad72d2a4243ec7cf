// The 3D viewer: one for all subjects, started when it is asked for.
(() => {
  const dialog = document.getElementById("viewer");
  if (!dialog) return;
  const state = dialog.querySelector(".state");
  const canvas = dialog.querySelector("canvas");
  let started = null;

  const able = () => {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl2"));
    } catch {
      return false;
    }
  };

  const bytes = (id) =>
    Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));

  // The page's policy lets this very script run, and no other: its hash stands there.
  const start = async () => {
    const packed = new Blob([bytes("viewer-code")]).stream();
    const script = document.createElement("script");
    script.textContent = await new Response(
      packed.pipeThrough(new DecompressionStream("gzip")),
    ).text();
    document.head.append(script);
    const viewer = new window.niivue.Niivue({
      backColor: [0, 0, 0, 1],
      logLevel: "error",
      dragAndDropEnabled: false,
      sagittalNoseLeft: true,
      crosshairWidth: 0.5,
      multiplanarLayout: 2,
      multiplanarShowRender: 1,
    });
    await viewer.attachToCanvas(canvas);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    return viewer;
  };

  const show = async (content, name) => {
    state.textContent = "Loading …";
    dialog.removeAttribute("data-ready");
    try {
      started ??= start();
      const viewer = await started;
      for (const old of [...viewer.volumes]) viewer.removeVolume(old);
      await viewer.loadFromArrayBuffer(content.buffer, name);
      state.textContent = "";
      dialog.setAttribute("data-ready", "yes");
    } catch {
      started = null;
      state.textContent = "This cannot be shown in 3D. The planes on the page are the same scan.";
    }
  };

  let looked = null;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.look");
    if (!button) return;
    if (!able()) {
      const text = document.createElement("p");
      text.className = "no-3d";
      text.setAttribute("role", "status");
      text.textContent = "This browser has no WebGL2: the planes above are what it can show.";
      button.replaceWith(text);
      return;
    }
    looked = button;
    const name = button.closest("article").querySelector("h3").textContent;
    document.getElementById("viewer-title").textContent = `${name} in 3D`;
    dialog.showModal();
    state.textContent = "Choose a scan: NIfTI or MGH.";
    if (button.dataset.volume) show(bytes(button.dataset.volume), "scan.nii.gz");
  });
  dialog.querySelector("input").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) show(new Uint8Array(await file.arrayBuffer()), file.name);
  });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => looked?.focus());
})();
