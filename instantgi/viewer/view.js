// Which part of the picture the canvas shows: its middle, in pixels of the picture, and a scale.

const LARGEST = 2 ** 14; // canvas pixels for one of the picture

export class View {
  constructor() {
    this.canvas = { width: 1, height: 1 };
    this.picture = { width: 1, height: 1 };
    this.isFitted = true;
    this.fit();
  }

  resize(width, height) {
    this.canvas = { width, height };
    if (this.isFitted) this.fit();
  }

  // Another picture; one of the same size is seen as the one before.
  show(picture) {
    const isSame = picture.width === this.picture.width && picture.height === this.picture.height;
    this.picture = { width: picture.width, height: picture.height };
    if (!isSame) this.fit();
  }

  fit() {
    const { picture, canvas } = this;
    this.scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    if (this.scale > 1 && this.scale < 1.1) this.scale = 1; // pixel by pixel, where it is close
    [this.x, this.y] = [picture.width / 2, picture.height / 2];
    this.isFitted = true;
  }

  // Zooms by a factor; the point of the picture at this place of the canvas stays where it is.
  zoom(factor, atX = this.canvas.width / 2, atY = this.canvas.height / 2) {
    const { picture, canvas } = this;
    const smallest = Math.min(1, 0.5 * Math.min(canvas.width / picture.width, canvas.height / picture.height));
    const scale = Math.min(Math.max(this.scale * factor, smallest), LARGEST);
    const [dx, dy] = [atX - canvas.width / 2, atY - canvas.height / 2];
    this.x += dx / this.scale - dx / scale;
    this.y += dy / this.scale - dy / scale;
    this.scale = scale;
    this.hold();
  }

  // Moves the picture by so many pixels of the canvas.
  pan(dx, dy) {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.hold();
  }

  // The middle of the canvas stays within the picture.
  hold() {
    this.x = Math.min(Math.max(this.x, 0), this.picture.width);
    this.y = Math.min(Math.max(this.y, 0), this.picture.height);
    this.isFitted = false;
  }

  // Where the picture's corner is, in whole pixels of the canvas.
  corner() {
    return {
      x: Math.round(this.canvas.width / 2 - this.x * this.scale),
      y: Math.round(this.canvas.height / 2 - this.y * this.scale),
      scale: this.scale,
    };
  }
}
