"""``mesh demo``: the whole game once, through the gateway alone, as two phones would play it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console

from mesh import video
from mesh.board import Board
from mesh.client import Clip, Phone, Piece
from mesh.errors import MeshError
from mesh.http import ConnectionLost, Json
from mesh.narrator import Narrator
from mesh.running import find_running, running
from mesh.sender import Sender
from mesh.state import StateDirectory
from mesh.together import together
from mesh.topology import Options
from services.common.keys import KeyRing

TITLE = "Two truths and a lie"
LIE = 1
_LONGEST = 900.0
_JPEG = b"\xff\xd8\xff"


async def demo(options: Options, files: Sequence[Path], console: Console) -> None:
    """Plays the game on the mesh of ``options``, started if none runs. Raises MeshError when anything is not as
    it must be."""
    narrator = Narrator(console)
    with tempfile.TemporaryDirectory(prefix="twotruths-demo-") as scratch:
        async with _mesh(options, console, narrator) as (urls, ring), aiohttp.ClientSession() as http:
            narrator.say(f"  gateway {' '.join(urls)}")
            alice, bob = phones(http, urls, ring)
            try:
                async with asyncio.timeout(_LONGEST):
                    result = await Game(alice, bob, narrator, Path(scratch)).play(files)
            except TimeoutError as error:
                raise MeshError(f"the demo was not done after {_LONGEST:g} s") from error
            except ConnectionLost as error:
                raise MeshError(str(error)) from error
    narrator.say(f"DEMO OK {json.dumps(result)}")


def phones(http: aiohttp.ClientSession, urls: Sequence[str], ring: KeyRing) -> tuple[Phone, Phone]:
    """Alice's and bob's: of several gateways, bob turns to the last one first."""
    alice, bob = ring.player_token("alice"), ring.player_token("bob")
    return Phone(http, urls, alice), Phone(http, urls[::-1], bob)


@asynccontextmanager
async def _mesh(
    options: Options, console: Console, narrator: Narrator
) -> AsyncIterator[tuple[list[str], KeyRing]]:
    """The gateways' URLs and the keys of the mesh that runs on the state directory, or of one that lives in the
    block."""
    state = StateDirectory(options.state)
    if info := await find_running(state):
        narrator.say(f"▸ using the mesh that runs on {state.root}", style="bold")
        yield info.gateway_urls, KeyRing(state.keys)
        return
    board = Board(console)
    async with AsyncExitStack() as stack:
        stack.callback(board.close)
        with narrator.stage("start", f"starting a mesh on {state.root}"):
            board.open()
            mesh = await stack.enter_async_context(running(options, board.changed, board.close))
            board.close()
        yield mesh.topology.gateway_urls, KeyRing(state.keys)


class Game:
    """One game: ``alice`` records, ``bob`` guesses. ``scratch`` takes files that nobody needs afterwards."""

    def __init__(self, alice: Phone, bob: Phone, narrator: Narrator, scratch: Path) -> None:
        self._alice = alice
        self._bob = bob
        self._narrator = narrator
        self._scratch = scratch

    async def play(self, files: Sequence[Path], canvas: tuple[int, int] | None = None) -> Json:
        """Plays it with three files, or with clips of its own; what DEMO OK reports."""
        narrator = self._narrator
        clips = await self._clips(files)
        with narrator.stage("upload", "uploading three clips, one connection breaks"):
            initiated = await self._alice.initiate(clips, TITLE, canvas)
            await self._upload(clips, initiated["upload_sessions"])
        with narrator.stage("merge", "merging"):
            merged = await self._merged(initiated["merge_session_id"])
        narrator.segments(merged["segments"])
        with narrator.stage("challenge", "alice makes a challenge and publishes it"):
            draft = await self._alice.create_challenge(TITLE, merged, LIE)
            challenge = await self._alice.publish(draft["challenge_id"])
        with narrator.stage("play", "bob plays it"):
            frames = await self._watch(challenge["challenge_id"], merged)
        with narrator.stage("guess", "bob guesses"):
            await self._guess(challenge)
        return {
            "merge_session_id": initiated["merge_session_id"],
            "video_file_id": merged["video_file_id"],
            "frames": frames,
            "segments": merged["segments"],
            "seconds": narrator.seconds,
        }

    async def _clips(self, files: Sequence[Path]) -> list[Clip]:
        if not files:
            from mesh.clips import make_demo_clips

            with self._narrator.stage("clips", "recording three clips"):
                files = await asyncio.to_thread(make_demo_clips, self._scratch / "clips")
        return [Clip(path, await asyncio.to_thread(video.duration, path)) for path in files]

    async def _upload(self, clips: Sequence[Clip], sessions: Sequence[Json]) -> None:
        names = [f"{index + 1} {clip.path.name}" for index, clip in enumerate(clips)]
        sizes = {name: clip.path.stat().st_size for name, clip in zip(names, clips, strict=True)}
        largest = max(names, key=sizes.__getitem__)
        with self._narrator.uploads(sizes) as progress:

            async def send(name: str, clip: Clip, session: Json) -> Sender:
                sender = Sender(self._alice, session, clip.path, lambda stored: progress(name, stored))
                await sender.send(drop=name == largest)
                return sender

            senders = await together(map(send, names, clips, sessions))
        for name, sender in zip(names, senders, strict=True):
            if sender.dropped is not None:
                self._broke(name, sender.dropped, sender.resumed)

    def _broke(self, name: str, dropped: int, resumed: list[int]) -> None:
        self._narrator.say(f"  {name}: connection dropped within chunk {dropped}; remaining_chunks was {resumed}")
        if dropped not in resumed:
            raise MeshError(f"after a drop within chunk {dropped} remaining_chunks was {resumed}")

    async def _merged(self, merge_session_id: str) -> Json:
        with self._narrator.percentage("merge") as progress:
            async for session in self._alice.follow_merge(merge_session_id):
                status = session["overall_status"]
                progress(status, session["overall_progress_percent"])
        if status != "completed":
            kind, message = session.get("error_type"), session.get("error_message")
            raise MeshError(f"merge {merge_session_id} {status}: {kind}: {message}")
        merged: Json = session["merged_video"]
        return merged

    async def _watch(self, challenge_id: str, merged: Json) -> int:
        """Bob seeks to the last statement, then plays all. The number of frames."""
        seen = await self._bob.segments(challenge_id)
        if seen["segments"] != merged["segments"]:
            raise MeshError("the challenge has other segments than the merged video")
        playback = await self._bob.playback(seen["video_file_id"])
        url = playback["streaming_url"]
        size = merged["file_size"]
        start, end = size // 3, min(size // 3 + 65_535, size - 1)
        piece = await self._bob.read_range(url, f"bytes={start}-{end}")
        whole = await self._bob.read_range(url, "bytes=0-")
        _check_piece(piece, start, end, size)
        _check_piece(whole, 0, size - 1, size)
        if whole.body[start : end + 1] != piece.body or whole.headers["ETag"] != piece.headers["ETag"]:
            raise MeshError("the same bytes of the video came out different")
        self._narrator.say(f"  206 {piece.headers['Content-Range']}, ETag {piece.headers['ETag']}")
        await self._look_beside(playback, len(seen["segments"]))
        path = self._scratch / "merged.mp4"
        await asyncio.to_thread(path.write_bytes, whole.body)
        return await asyncio.to_thread(video.check_segments, path, seen["segments"])

    async def _look_beside(self, playback: Json, statements: int) -> None:
        """Bob gets the posters, the storyboard and the HLS playlist with the permission that the video has."""
        board = playback["storyboard"] or {"image_url": "", "vtt_url": ""}
        pictures = [*playback["posters"], board["image_url"]]
        if len(pictures) != statements + 1 or not all((*pictures, playback["hls_url"])):
            raise MeshError(f"posters, storyboard or HLS are missing: {playback}")
        found = [(await self._bob.read_range(url, "bytes=0-")).body for url in pictures]
        times, playlist = [
            (await self._bob.read_range(url, "bytes=0-")).body.decode()
            for url in (board["vtt_url"], playback["hls_url"])
        ]
        tiles, parts = times.count(" --> "), playlist.count("#EXTINF")
        if not all(picture.startswith(_JPEG) for picture in found) or not tiles or not parts:
            raise MeshError(
                "a poster or the storyboard is no JPEG, or nothing is in the storyboard or the playlist"
            )
        self._narrator.say(
            f"  beside it: chapters, {statements} posters, a storyboard of {tiles} pictures, HLS in {parts} parts"
        )

    async def _guess(self, challenge: Json) -> None:
        challenge_id = challenge["challenge_id"]
        seen = await self._bob.challenge(challenge_id)
        if seen.get("answer"):
            raise MeshError("the lie was visible before the guess")
        outcome = await self._bob.guess(challenge_id, LIE)
        answer = outcome["answer"]
        opened = f"{challenge_id}:{answer['lie_statement_index']}:{answer['salt']}"
        if hashlib.sha256(opened.encode()).hexdigest() != seen["commitment"]:
            raise MeshError("the answer does not open the challenge's commitment")
        if not outcome["correct"] or answer["lie_statement_index"] != LIE:
            raise MeshError(f"statement {LIE} is the lie, and the answer says otherwise")
        self._narrator.say(f"  statement {LIE} is the lie: {outcome['points']} points")


def _check_piece(piece: Piece, start: int, end: int, size: int) -> None:
    expected = f"bytes {start}-{end}/{size}"
    if piece.status != 206 or piece.headers.get("Content-Range") != expected:
        found = f"{piece.status}, {piece.headers.get('Content-Range')}"
        raise MeshError(f"a range was answered with {found} instead of 206, {expected}")
    if len(piece.body) != end - start + 1 or not piece.headers.get("ETag"):
        raise MeshError("a range came with another length or without an ETag")
