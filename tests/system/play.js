// Plays and seeks a video in Debian's Chromium and prints what was shown: node play.js '{"url": …, "seeks": [seconds, …]}'
// The page at url has one <video>. Each picture is [time of the shown frame in seconds, [red, green, blue] in its middle].
import { chromium } from "playwright-core";

const settings = JSON.parse(process.argv[2]);
const browser = await chromium.launch({
  executablePath: settings.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"],
});
try {
  const page = await browser.newPage();
  await page.goto(settings.url);
  const shown = await page.evaluate(async (seeks) => {
    const video = document.querySelector("video");
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [1, 1];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const look = () => {
      const { videoWidth: width, videoHeight: height } = video;
      context.drawImage(video, width / 2 - 4, height / 2 - 4, 8, 8, 0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    };
    const once = (name) => new Promise((resolve, reject) => {
      video.addEventListener(name, resolve, { once: true });
      video.addEventListener("error", () => reject(new Error(video.error.message)), { once: true });
    });
    const frame = () => new Promise((resolve) => {
      video.requestVideoFrameCallback((_, { mediaTime }) => resolve([mediaTime, look()]));
    });
    if (video.readyState < 2) await once("loadeddata");
    const sought = [];
    for (const time of seeks) {
      const [picture] = await Promise.all([frame(), once("seeked"), video.currentTime = time]);
      sought.push(picture);
    }
    const played = [];
    await Promise.all([frame(), once("seeked"), video.currentTime = 0]);
    const watch = (_, { mediaTime }) => {
      played.push([mediaTime, look()]);
      if (!video.ended) video.requestVideoFrameCallback(watch);
    };
    video.requestVideoFrameCallback(watch);
    await Promise.all([once("ended"), video.play()]);
    return { duration: video.duration, width: video.videoWidth, height: video.videoHeight, sought, played };
  }, settings.seeks);
  console.log(JSON.stringify(shown));
} finally {
  await browser.close();
}
