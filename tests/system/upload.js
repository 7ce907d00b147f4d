// Uploads a file with tus-js-client and prints the upload's URL: node upload.js '{"endpoint": …, …}'
// Settings: endpoint, token, file, chunkSize, parallelUploads; cutAfter: bytes after which the first try is aborted and
// the upload is taken up again from its URL, as a new page would.
import { createReadStream, statSync } from "node:fs";
import { Upload } from "tus-js-client";

const settings = JSON.parse(process.argv[2]);
const size = statSync(settings.file).size;

function upload(more) {
  return new Promise((resolve, reject) => {
    const task = new Upload(createReadStream(settings.file), {
      endpoint: settings.endpoint,
      chunkSize: settings.chunkSize,
      parallelUploads: settings.parallelUploads ?? 1,
      headers: { Authorization: `Bearer ${settings.token}` },
      metadata: { filename: "clip.mp4", filetype: "video/mp4" },
      retryDelays: [0, 100, 200, 400, 800, 1600, 3200],
      onError: reject,
      onSuccess: () => resolve(task),
      ...more(() => task, resolve),
    });
    task.start();
  });
}

let first;
if (settings.cutAfter) {
  first = await upload((task, resolve) => ({
    onProgress: (sent) => {
      if (sent >= settings.cutAfter && task().url) {
        task().abort(false).then(() => resolve(task()));
      }
    },
  }));
}
let sent = 0;
const done = await upload(() => ({
  uploadUrl: first?.url ?? null,
  onChunkComplete: (bytes) => { sent += bytes; },
}));
console.log(JSON.stringify({ url: done.url, sent, size }));
