// Portraits: any picture that this browser or the server can read, and thumbnails of the faces to choose from.

const ACCEPTED = ["image/png", "image/jpeg", "image/webp", "image/bmp"];
const MAX_BYTES = 8 * 1024 * 1024;
const MAX_SIDE = 3000;
const THUMBNAIL = 96;

export const isPicture = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif|jxl|tiff?)$/i.test(file.name);

async function open(file) {
  return createImageBitmap(file, { imageOrientation: "from-image" });
}

/**
 * The file, or a JPEG of it where the server takes no such type or so many bytes.
 * Raises Error in words for people where the browser cannot read it either.
 */
export async function prepare(file) {
  if (ACCEPTED.includes(file.type) && file.size <= MAX_BYTES) return file;
  let picture;
  try {
    picture = await open(file);
  } catch {
    const kind = /hei[cf]$/i.test(file.type || file.name) ? "an HEIC picture, which this browser cannot read" : "no picture that this browser can read";
    throw new Error(`${file.name} is ${kind}. Save it as JPEG or PNG, then choose it again.`);
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.width, picture.height));
  const canvas = draw(picture, [0, 0, 1, 1], Math.round(picture.width * scale), Math.round(picture.height * scale));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** A button for each face. `boxes` are [left, top, width, height] as fractions of the upright picture. */
export async function faceButtons(file, count, boxes = [], choose) {
  const picture = await open(file).catch(() => null);
  return Array.from({ length: count }, (_, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Face ${n + 1} of ${count}, from the left`);
    button.append(picture && boxes[n] ? draw(picture, around(boxes[n], picture), THUMBNAIL, THUMBNAIL) : String(n + 1));
    button.onclick = () => choose(n + 1);
    return button;
  });
}

/** A square around a face, with some hair and chin, within the picture. */
function around([x, y, w, h], { width, height }) {
  const side = Math.min(1.5 * Math.max(w * width, h * height), width, height);
  const place = (middle, size) => Math.max(0, Math.min(size - side, middle * size - side / 2)) / size;
  return [place(x + w / 2, width), place(y + h / 2, height), side / width, side / height];
}

function draw(picture, [x, y, w, h], width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const paint = canvas.getContext("2d");
  paint.fillStyle = "#fff"; // JPEG knows no transparency
  paint.fillRect(0, 0, width, height);
  paint.drawImage(picture, x * picture.width, y * picture.height, w * picture.width, h * picture.height, 0, 0, width, height);
  return canvas;
}
