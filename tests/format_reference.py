"""A reader of `.gi` files from docs/format.md alone: integers and floats of Python, no libraries.

Slow and obvious; what the reader of the package is tested against.
"""

import math
import struct
import zlib
from typing import Any

ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
LN_2 = 0.6931471805599453
TOTAL = 2**24
Gaussian = tuple[float, ...]  # x, y, l11, l21, l22 and the channels


def read(data: bytes) -> tuple[dict[str, Any], list[Gaussian]]:
    """The header and the Gaussians of a whole file of one part."""
    ((header, gaussians),) = read_parts(data)
    return header, gaussians


def read_parts(data: bytes) -> list[tuple[dict[str, Any], list[Gaussian]]]:
    """The header and the Gaussians of each part of a whole file."""
    assert data[:8] == bytes.fromhex("894749 0D0A1A0A 00")
    at, chunks = 8, []
    while True:
        length, kind = struct.unpack_from("<I4s", data, at)
        payload = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from("<I", data, at + 8 + length)
        assert zlib.crc32(kind + payload) == checksum
        at += length + 12
        if kind == b"END ":
            break
        if not kind[:1].islower():
            chunks.append((kind, payload))
    number = 1
    if chunks[1:] and chunks[1][0] == b"PART":
        (number,) = chunks.pop(1)[1]
    starts = [i for i, chunk in enumerate(chunks) if chunk[0] == b"HEAD"]
    assert len(starts) == number
    ends = [*starts[1:], len(chunks)]
    return [read_part(chunks[i:end]) for i, end in zip(starts, ends, strict=True)]


def read_part(chunks: list[tuple[bytes, bytes]]) -> tuple[dict[str, Any], list[Gaussian]]:
    names = "version renderer profile channels height width num".split()
    header: dict[str, Any] = dict(
        zip(names, struct.unpack_from("<BBBBIII", chunks[0][1]), strict=True)
    )
    assert header["version"] == 1
    rest_of_header = 16
    if header["profile"] in (1, 2):
        steps = struct.unpack_from("<fBfff", chunks[0][1], 16)
        header |= zip("position sizes shape luma chroma".split(), steps, strict=True)
        rest_of_header += 17
    layout = ["<", "<Bf", "<ff"][header["renderer"]]
    header["numbers"] = struct.unpack(layout, chunks[0][1][rest_of_header:])
    if header["profile"] == 3:
        return header, read_seeds(chunks[1:], header)
    step = header.get("position", 1.0)
    wide, high = (max(1, math.ceil(header[name] / step)) for name in ("width", "height"))
    blocks = [(header["num"], 0, 0, wide, high)]
    rest = chunks[1:]
    if rest and rest[0][0] == b"GRID":
        blocks, grid = [], rest.pop(0)[1]
        side, row = int.from_bytes(grid[:4], "little"), 4
        for y in range(0, high, side):
            for x in range(0, wide, side):
                num = int.from_bytes(grid[row : row + 4], "little")
                blocks.append((num, x, y, min(side, wide - x), min(side, high - y)))
                row += 20
    header["blocks"] = len(blocks)
    blocks = [block for block in blocks if block[0]]
    gaussians = []
    for i, block in enumerate(blocks):
        payloads = {kind: payload for kind, payload in rest[i :: len(blocks)]}
        if header["profile"] == 0:
            gaussians += read_full(payloads[b"FULL"], block[0], header["channels"])
        else:
            gaussians += read_block(payloads, block, header)
    return header, gaussians


def read_full(payload: bytes, num: int, channels: int) -> list[Gaussian]:
    numbers = struct.unpack(f"<{num * (5 + channels)}f", payload)
    return [numbers[n::num] for n in range(num)]


def read_block(payloads: dict[bytes, bytes], block: tuple, header: dict) -> list[Gaussian]:
    num, x0, y0, wide, high = block
    channels = header["channels"]
    chroma = [c for c in range(channels) if channels in (3, 4) and c % 3 > 0]
    others = [c for c in range(channels) if c not in chroma]
    if header["profile"] == 1:
        points = list(zip(*read_fixed(payloads[b"POSI"], num, 2), strict=True))
        sizes = read_fixed(payloads[b"SIZE"], num, 1)[0]
    else:
        points = read_points(payloads[b"POSI"], num, wide, high)
        sizes = read_classes(payloads[b"SIZE"], [closeness(points, n) for n in range(num)], 1)[0]
    planes: dict[int, list[int]] = {}
    for kind, chosen in ((b"LUMA", others), (b"CHRO", chroma)):
        if kind not in payloads:
            continue
        if header["profile"] == 1:
            found = read_fixed(payloads[kind], num, len(chosen))
        else:
            classes = sizes if kind == b"LUMA" else [bits([value]) for value in planes[0]]
            found = read_classes(payloads[kind], classes, len(chosen))
        planes |= zip(chosen, found, strict=True)
    colors = [[planes[c][n] for c in range(channels)] for n in range(num)]
    levels = [level(color) for color in colors]
    if header["profile"] == 1:
        shapes = read_fixed(payloads[b"SHAP"], num, 2)
    else:
        shapes = read_classes(payloads[b"SHAP"], levels, 2)
    return [
        gaussian(
            (points[n][0] + x0, points[n][1] + y0),
            sizes[n],
            colors[n],
            chroma,
            levels[n],
            (shapes[0][n], shapes[1][n]),
            header,
        )
        for n in range(num)
    ]


def gaussian(point, size, color, chroma, level, shape, header) -> Gaussian:
    octave = size // header["sizes"]
    s = math.ldexp(exp((size - octave * header["sizes"]) * (LN_2 / header["sizes"])), octave)
    channels = [
        value * (header["chroma"] if c in chroma else header["luma"]) / s
        for c, value in enumerate(color)
    ]
    if chroma:
        y, a, g = channels[:3]
        m = y - g * 2 / 3
        channels[:3] = m + a, y + g * 4 / 3, m - a
    root = 1.4142135623730951 if level % 2 else 1.0
    step = min(header["shape"] / header["luma"] / (root * 2.0 ** (level // 2)), 1.0)
    d, o = (min(max(number * step, -4.0), 4.0) for number in shape)
    r = min(math.sqrt(d * d + o * o), 4.0)
    g = exp(2 * r)
    c = (g + 1 / g) / 2
    f = (g - 1 / g) / 2 / r if r > 1e-4 else 2.0
    x = math.sqrt(max(c + f * d, 1e-6))
    mean = [(place + 0.5) * header["position"] for place in point]
    values = (*mean, s * x, s * (f * o) / x, s / x, *channels)
    return tuple(struct.unpack("<f", struct.pack("<f", value))[0] for value in values)


def exp(x: float) -> float:
    h = math.floor(x / LN_2)
    r, y = x - h * LN_2, 1.0
    for n in range(18, 0, -1):
        y = 1.0 + (y * r) / n
    return math.ldexp(y, h)


def exp_minus(x: float) -> float:
    if x >= 40:
        return 0.0
    h = math.floor(x / LN_2)
    r, y = x - h * LN_2, 1.0
    for n in range(16, 0, -1):
        y = 1.0 - (y * r) / n
    return math.ldexp(y, -h)


def bits(values: list[int]) -> int:
    return math.floor(sum(min(abs(value), 2**25) ** 2 for value in values)).bit_length()


def level(color: list[int]) -> int:
    return min(24, (1 + sum(min(abs(value), 2**25) ** 2 for value in color)).bit_length() - 1)


def closeness(points: list[tuple[int, int]], n: int) -> int:
    apart = [
        (points[n][0] - points[m][0]) ** 2 + (points[n][1] - points[m][1]) ** 2
        for m in (n - 1, n + 1)
        if 0 <= m < len(points)
    ]
    return bits([min(apart)]) if apart else 0


def read_fixed(payload: bytes, num: int, columns: int) -> list[list[int]]:
    found, at = [], 0
    for _ in range(columns):
        low, width = struct.unpack_from("<iB", payload, at)
        length = (num * width + 7) // 8
        text = "".join(f"{byte:08b}" for byte in payload[at + 5 : at + 5 + length])
        found.append([low + int(text[n * width : (n + 1) * width] or "0", 2) for n in range(num)])
        at += 5 + length
    assert at == len(payload)
    return found


# the compact profile


def number_at(payload: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while payload[at] >= 128:
        number |= (payload[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | payload[at] << shift, at + 1


class Symbols:
    def __init__(self, payload: bytes):
        count, at = number_at(payload, 0)
        self.beyond = list(struct.unpack_from(f"<{count}i", payload, at))
        self.words = [word for (word,) in struct.iter_unpack("<I", payload[at + 4 * count :])]
        self.state = 0
        self.fill()

    def fill(self) -> None:
        while self.state < 2**32 and self.words:
            self.state = self.state * 2**32 + self.words.pop()

    def take(self, frequencies: list[int]) -> int:
        assert min(frequencies) >= 1 and sum(frequencies) == TOTAL
        rest, index = self.state % TOTAL, 0
        while rest >= frequencies[index]:
            rest -= frequencies[index]
            index += 1
        self.state = self.state // TOTAL * frequencies[index] + rest
        self.fill()
        return index

    def numbers(self, code: int, count: int) -> list[int]:
        table, low = signed(code % 64), 2 * (code // 64)
        found = []
        for _ in range(count):
            symbol = self.take(table) - 127
            found.append(self.beyond.pop(0) if abs(symbol) == 127 else symbol)
        if low:
            found = [u * 2**low + self.take([TOTAL >> low] * 2**low) for u in found]
        return found


def signed(t: int) -> list[int]:
    s = 2.0 ** ((t % 32 - 8) // 4) * ROOTS[(t % 32 - 8) % 4]
    densities = []
    for symbol in range(-127, 128):
        p = float(abs(symbol))
        densities.append(exp_minus(p * (ROOTS[2] / s) if t < 32 else p * p / (2 * s * s)))
    return frequencies_of(densities)


def frequencies_of(densities: list[float]) -> list[int]:
    total = 0.0
    for density in densities:
        total += density
    shares = [1 + math.floor(density * ((TOTAL - 255) / total)) for density in densities]
    shares[127] += TOTAL - sum(shares)
    return shares


def split(n: int, a: int, b: int, q: int) -> list[int]:
    weights = [
        math.isqrt(math.isqrt(math.comb(n, k) ** q * 2**128)) * a**k * b ** (n - k)
        for k in range(n + 1)
    ]
    shares = [1 + weight * (TOTAL - n - 1) // sum(weights) for weight in weights]
    shares[n // 2] += TOTAL - sum(shares)
    return shares


def read_points(payload: bytes, num: int, wide: int, high: int) -> list[tuple[int, int]]:
    length, at = number_at(payload, 0)
    choices, symbols = list(payload[at : at + length]), Symbols(payload[at + length :])
    cells = [(0, 0, wide, high, num)]
    while any(w * h > 1 for _, _, w, h, _ in cells):
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (_, _, w, h, n) in enumerate(cells):
            if w * h > 1:
                side = max(w, h)
                left = (side + 1) // 2
                is_uneven = n <= 16 and side % 2 and side < 16
                key = (n if n <= 16 else 0, left if is_uneven else 0)
                groups.setdefault(key, []).append(i)
        on_left: dict[int, int] = {}
        q = choices.pop(0) if any(n > 1 for n, _ in groups) else 0
        for (n, left), chosen in sorted(groups.items(), reverse=True):
            if n:
                table = split(n, left or 1, left - 1 if left else 1, q)
                on_left |= {i: symbols.take(table) for i in chosen}
            else:
                away = symbols.numbers(choices.pop(0), len(chosen))
                for i, value in zip(chosen, away, strict=True):
                    side = max(cells[i][2:4])
                    on_left[i] = cells[i][4] * ((side + 1) // 2) // side + value
        halved = []
        for i, (x, y, w, h, n) in enumerate(cells):
            if i not in on_left:
                halved.append((x, y, w, h, n))
                continue
            k = on_left[i]
            if w >= h:
                half = (w + 1) // 2
                halved += [(x, y, half, h, k), (x + half, y, w - half, h, n - k)]
            else:
                half = (h + 1) // 2
                halved += [(x, y, w, half, k), (x, y + half, w, h - half, n - k)]
        cells = [cell for cell in halved if cell[4]]
    assert not choices
    return [(x, y) for x, y, _, _, n in cells for _ in range(n)]


def read_classes(payload: bytes, classes: list[int], planes: int) -> list[list[int]]:
    num = len(classes)
    rare = max(40, num // 12 // 2)
    names, number, filled = {}, 0, 0
    for value in sorted(set(classes)):
        names[value] = number
        filled += classes.count(value)
        following = sum(other > value for other in classes)
        if filled >= rare and following >= rare and number + 1 < 12:
            number, filled = number + 1, 0
    merged = number + 1
    heads, at = [], 0
    for _ in range(planes * merged):
        center, at = number_at(payload, at)
        heads.append((-(center + 1) // 2 if center % 2 else center // 2, payload[at]))
        at += 1
    symbols = Symbols(payload[at:])
    found = [[0] * num for _ in range(planes)]
    for i, (center, code) in enumerate(heads):
        chosen = [n for n in range(num) if names[classes[n]] == i % merged]
        for n, value in zip(chosen, symbols.numbers(code, len(chosen)), strict=True):
            found[i // merged][n] = center + value
    return found


# the profile of seeds

G = 0x9E3779B97F4A7C15
Rows = list[list[int]]


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def places(num: int, width: int, height: int, seed: int) -> list[tuple[int, int]]:
    """X and Y of every seed, the point at (X, Y) / 128 px."""
    columns = min(max((math.isqrt(4 * num * width // height) + 1) // 2, 1), num)
    rows = -(-num // columns)
    first = mix((seed + G) % 2**64)

    def h(n: int, d: int) -> int:
        return mix(((2 * n + d) * G + first) % 2**64)

    total, dropped = rows * columns, set()
    excess = total - num
    for e in range(excess):
        begin, end = e * total // excess, (e + 1) * total // excess
        dropped.add(begin + h(e, 1) % (end - begin))
    found = []
    for n in range(total):
        if n not in dropped:
            x = (512 * (n % columns) + 2 * (h(n, 0) % 256) + 1) * width // (8 * columns)
            y = (512 * (n // columns) + 2 * (h(n, 0) // 256 % 256) + 1) * height // (8 * rows)
            found.append((2 * x + 1, 2 * y + 1))
    return found


def logistic(x: float) -> float:
    tail = exp_minus(x)
    return tail / (1.0 + tail)


def logistic_frequencies(level: int, eighths: int) -> list[int]:
    s = 2.0 ** ((level - 24) // 4) * ROOTS[(level - 24) % 4]
    densities = []
    for symbol in range(-127, 128):
        p = abs(symbol - eighths / 8)
        if p >= 0.5:
            densities.append(logistic((p - 0.5) / s) - logistic((p + 0.5) / s))
        else:
            densities.append(1.0 - logistic((p + 0.5) / s) - logistic((0.5 - p) / s))
    return frequencies_of(densities)


def read_seeds(chunks: list[tuple[bytes, bytes]], header: dict) -> list[Gaussian]:
    (first, shared), (second, networks), *rest = chunks
    assert (first, second) == (b"SEED", b"NETS")
    names = "random num_seeds features per_seed colors shapes context".split()
    numbers = struct.unpack_from("<IIHBHHHfffIB", shared)
    found = dict(zip(names, struct.unpack_from("<IIHBHHH", shared), strict=True))
    bases, longest = numbers[7:10], int(numbers[10])
    resolutions = [level for (level,) in struct.iter_unpack("<I", shared[numbers_size() :])]
    assert len(resolutions) == numbers[11]
    width, height, channels = header["width"], header["height"], header["channels"]
    num, per_seed = found["num_seeds"], found["per_seed"]
    assert num * per_seed == header["num"]
    counts = [found["features"], 4, 2 * per_seed]
    points = places(num, width, height, found["random"])

    # the networks
    at = len(resolutions) + 15
    symbols, head = Symbols(networks[at:]), list(networks[:at])
    side, tables = max(width, height), []
    for level in resolutions:
        across = -(-level * width // side) + 1
        nodes = min(across * (-(-level * height // side) + 1), longest)
        share = head.pop(0)
        coin = [2**16 * (256 - share), 2**16 * share]
        signs = [2 * symbols.take(coin) - 1 for _ in range(4 * nodes)]
        table = [signs[4 * n : 4 * n + 4] for n in range(nodes)]
        tables.append((level, across, across * (-(-level * height // side) + 1) > longest, table))
    layers = []
    for inputs, hidden, outputs in (
        (counts[0], found["colors"], channels * per_seed),
        (counts[0], found["shapes"], 3 * per_seed),
        (4 * len(resolutions), found["context"], 2 * sum(counts) + 3),
    ):
        bits = head.pop(0)
        parts = []
        for rows, columns in ((inputs, hidden), (1, hidden), (hidden, outputs), (1, outputs)):
            flat = symbols.numbers(head.pop(0), rows * columns)
            parts.append([flat[n * columns : (n + 1) * columns] for n in range(rows)])
        layers.append((bits, *parts))

    # what is known of each number, then the numbers
    means: Rows = []
    levels: Rows = []
    turns: Rows = []
    for x, y in points:
        seen = []
        for level, across, is_hashed, table in tables:
            at_x, at_y = 2 * level * x // side, 2 * level * y // side
            signs_seen = [0] * 4
            for dy in (0, 1):
                for dx in (0, 1):
                    i, j = (at_x >> 8) + dx, (at_y >> 8) + dy
                    node = i + j * across
                    if is_hashed:
                        node = (i ^ (j * 2654435761 % 2**32)) % longest
                    a, b = at_x & 255, at_y & 255
                    weight = (a if dx else 256 - a) * (b if dy else 256 - b)
                    signs_seen = [
                        v + weight * s for v, s in zip(signs_seen, table[node], strict=True)
                    ]
            seen += signs_seen
        p = context_of(seen, layers[2])
        quarters = [(4 * value + 2**19) >> 20 for value in p[sum(counts) :]]
        turn = [min(max(value, -12), 12) for value in quarters[sum(counts) :]]
        kinds = [kind for kind, count in enumerate(counts) for _ in range(count)]
        mean, spread = [], []
        for n, kind in enumerate(kinds):
            t = turn[kind]
            value = min(max(p[n] >> 12, -(2**31)), 2**31)
            mean.append((value * round(2 ** (14 - t / 4)) + 2**18) >> 19)
            spread.append(min(max(quarters[n] + 24 - t, 0), 63))
        means.append(mean)
        levels.append(spread)
        turns.append(turn)
    values: Rows = [[] for _ in range(num)]
    for block in range(0, num, 2**14):
        chosen = range(block, min(block + 2**14, num))
        runs = -(-num // 2**14)
        begin = 0
        for kind, count in enumerate(counts):
            name, payload = rest[kind * runs + block // 2**14]
            assert name == (b"FEAT", b"SCAL", b"OFFS")[kind]
            cells = [(n, begin + k) for n in chosen for k in range(count)]
            numbers = read_logistic(
                payload, [means[n][k] for n, k in cells], [levels[n][k] for n, k in cells]
            )
            for (n, _), number in zip(cells, numbers, strict=True):
                values[n].append(number)
            begin += count
    header["symbols"], header["values"] = values, []
    for row, turn in zip(values, turns, strict=True):
        steps = [
            math.ldexp(base * ROOTS[t % 4], t // 4) for base, t in zip(bases, turn, strict=True)
        ]
        each = [steps[kind] for kind, count in enumerate(counts) for _ in range(count)]
        header["values"].append([value * step for value, step in zip(row, each, strict=True)])
    header["blocks"] = -(-num // 2**14)
    return gaussians_of_seeds(points, values, turns, bases, counts, layers[:2], header)


def numbers_size() -> int:
    return struct.calcsize("<IIHBHHHfffIB")


def context_of(seen: list[int], layers: tuple) -> list[int]:
    """In 2^-20, of what is seen in 2^-16."""
    bits, weights1, (biases1,), weights2, (biases2,) = layers
    up = 2 ** (8 - bits) if bits <= 8 else None
    assert up is not None
    hidden = []
    for j, bias in enumerate(biases1):
        total = sum(value * row[j] * up for value, row in zip(seen, weights1, strict=True))
        hidden.append(min(max((total + bias * up * 2**16 + 2**11) >> 12, 0), 2**17 - 1))
    return [
        sum(value * row[j] * up for value, row in zip(hidden, weights2, strict=True))
        + bias * up * 2**12
        for j, bias in enumerate(biases2)
    ]


def read_logistic(payload: bytes, means: list[int], levels: list[int]) -> list[int]:
    symbols, found = Symbols(payload), [0] * len(means)
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for n, (mean, level) in enumerate(zip(means, levels, strict=True)):
        low = max(0, (level - 44 + 3) // 4)
        mean = (mean - 4 * (2**low - 1)) >> low
        center = (mean + 4) >> 3
        groups.setdefault((level, mean - 8 * center), []).append((n, center, low))
    for (level, eighths), members in sorted(groups.items()):
        low = members[0][2]
        table = logistic_frequencies(level - 4 * low, eighths)
        numbers = []
        for _, center, _ in members:
            symbol = symbols.take(table) - 127
            numbers.append(center + (symbols.beyond.pop(0) if abs(symbol) == 127 else symbol))
        if low:
            numbers = [u * 2**low + symbols.take([TOTAL >> low] * 2**low) for u in numbers]
        for (n, _, _), number in zip(members, numbers, strict=True):
            found[n] = number
    return found


def network_of(x: list[float], layers: tuple) -> list[float]:
    bits, weights1, (biases1,), weights2, (biases2,) = layers
    for weights, biases in ((weights1, biases1), (weights2, biases2)):
        sums = [
            sum(value * row[j] for value, row in zip(x, weights, strict=True)) + bias
            for j, bias in enumerate(biases)
        ]
        x = [max(value / 2**bits, 0.0) for value in sums]
    return [value / 2**bits for value in sums]


def gaussians_of_seeds(points, values, turns, bases, counts, layers, header) -> list[Gaussian]:
    features, _, _ = counts
    channels, per_seed = header["channels"], counts[2] // 2
    gaussians = []
    for (x, y), numbers, turn in zip(points, values, turns, strict=True):
        steps = [
            math.ldexp(base * ROOTS[t % 4], t // 4) for base, t in zip(bases, turn, strict=True)
        ]
        feature = [number * steps[0] for number in numbers[:features]]
        size = [math.exp(number * steps[1]) for number in numbers[features : features + 4]]
        offset = [number * steps[2] for number in numbers[features + 4 :]]
        color, shape = (network_of(feature, layer) for layer in layers)
        for k in range(per_seed):
            a, b, angle = shape[3 * k : 3 * k + 3]
            s1 = math.hypot(size[2] / (1 + math.exp(-a)), 0.05)
            s2 = math.hypot(size[3] / (1 + math.exp(-b)), 0.05)
            c, s = math.cos(angle), math.sin(angle)
            xx, xy = (c * s1) ** 2 + (s * s2) ** 2, c * s * (s1 * s1 - s2 * s2)
            l11 = math.sqrt(xx)
            mean = (x / 128 + offset[2 * k] * size[0], y / 128 + offset[2 * k + 1] * size[1])
            colors = color[k * channels : (k + 1) * channels]
            gaussians.append((*mean, l11, xy / l11, s1 * s2 / l11, *colors))
    return gaussians
