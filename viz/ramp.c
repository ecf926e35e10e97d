/* ramp.c -- the tables of ramp.h. */
#include "viz/ramp.h"

#include <math.h>
#include <string.h>

static const uint32_t cividis[VIZ_HEAT_LEVELS] = {
    0x00224e, 0x002554, 0x00285b, 0x002b62, 0x002e6a, 0x003070, 0x053371, 0x123570, 0x1a386f, 0x213b6e, 0x273e6e,
    0x2e416d, 0x33446d, 0x38476c, 0x3c4a6c, 0x404c6c, 0x444f6c, 0x48526c, 0x4c556c, 0x50576c, 0x545a6d, 0x575d6d,
    0x5b606e, 0x5e636f, 0x62656f, 0x656870, 0x696b71, 0x6c6e72, 0x707173, 0x737475, 0x777776, 0x7a7a78, 0x7e7d78,
    0x828079, 0x868379, 0x8a8678, 0x8e8978, 0x928c78, 0x958f77, 0x999277, 0x9d9576, 0xa19975, 0xa59c74, 0xa99f73,
    0xada272, 0xb1a570, 0xb6a96f, 0xbaac6d, 0xbeaf6b, 0xc2b369, 0xc6b667, 0xcbb965, 0xcfbd62, 0xd4c15f, 0xd9c55c,
    0xddc858, 0xe1cc55, 0xe6d051, 0xead34c, 0xefd748, 0xf3db42, 0xf8df3c, 0xfde334, 0xfee838,
};
static const uint32_t magma[VIZ_HEAT_LEVELS] = {
    0x000004, 0x020109, 0x030312, 0x06051a, 0x0a0822, 0x0e0b2b, 0x130d34, 0x180f3d, 0x1d1147, 0x221150, 0x29115a,
    0x311165, 0x38106c, 0x3f0f72, 0x451077, 0x4c117a, 0x52137c, 0x59157e, 0x5f187f, 0x651a80, 0x6b1d81, 0x721f81,
    0x782281, 0x7e2482, 0x842681, 0x8b2981, 0x912b81, 0x982d80, 0x9e2f7f, 0xa5317e, 0xab337c, 0xb2357b, 0xba3878,
    0xc03a76, 0xc73d73, 0xcd4071, 0xd3436e, 0xd9466b, 0xdf4a68, 0xe44f64, 0xe95462, 0xed5a5f, 0xf1605d, 0xf4675c,
    0xf66e5c, 0xf8765c, 0xfa7d5e, 0xfb8560, 0xfc8c63, 0xfd9467, 0xfd9b6b, 0xfea36f, 0xfeaa74, 0xfeb47b, 0xfebb81,
    0xfec287, 0xfeca8d, 0xfed194, 0xfed89a, 0xfde0a1, 0xfde7a9, 0xfceeb0, 0xfcf6b8, 0xfcfdbf,
};

/* 256 colours, by hand: from the colour cube and the grey line, lightness rising at every step (tests/test_viz_ramp.c) */
static const uint8_t cividis_256[] = {17, 18, 24, 60, 242, 243, 244, 102, 246, 144, 179, 185, 221, 227};
static const uint8_t magma_256[] = {16, 233, 53, 54, 90, 126, 162, 167, 203, 209, 216, 222, 229};
static const uint8_t grey_256[] = {232, 233, 234, 235, 236, 237, 238, 239, 240, 241, 242, 243,
                                   244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254, 255};
static const uint8_t diverge_256[] = {26, 32, 74, 110, 152, 238, 224, 217, 210, 203, 196};

static const struct {
    const uint8_t *at;
    int n;
} list_256[VIZ_RAMP_COUNT] = {
    [VIZ_RAMP_CIVIDIS] = {cividis_256, sizeof cividis_256},
    [VIZ_RAMP_MAGMA] = {magma_256, sizeof magma_256},
    [VIZ_RAMP_GREY] = {grey_256, sizeof grey_256},
    [VIZ_RAMP_DIVERGE] = {diverge_256, sizeof diverge_256},
};

static const char *const names[VIZ_RAMP_COUNT] = {
#define X(name, text) text,
    VIZ_RAMP_MAP(X)
#undef X
};

const char *viz_ramp_name(viz_ramp ramp) { return names[ramp]; }

bool viz_ramp_find(const char *name, viz_ramp *out) {
    for (int i = 0; i < VIZ_RAMP_COUNT; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (viz_ramp)i;
            return true;
        }
    return false;
}

int viz_ramp_level(double t) {
    if (!(t > 0)) return 0;
    if (t >= 1) return VIZ_HEAT_LEVELS - 1;
    return (int)(t * VIZ_HEAT_LEVELS);
}

static uint32_t mix(uint32_t a, uint32_t b, double t) {
    uint32_t out = 0;
    for (int shift = 16; shift >= 0; shift -= 8) {
        const double x = a >> shift & 255, y = b >> shift & 255;
        out |= (uint32_t)lround(x + (y - x) * t) << shift;
    }
    return out;
}

/* blue - near black - red; the middle is the ground colour, so that "no difference" recedes */
static uint32_t diverge_rgb(int level) {
    const double t = (level + 0.5) / VIZ_HEAT_LEVELS;
    return t < 0.5 ? mix(0x4aa3ff, 0x20262f, 2 * t) : mix(0x20262f, 0xff5a4f, 2 * t - 1);
}

uint32_t viz_ramp_rgb(viz_ramp ramp, int level, bool dimmed) {
    if (level < 0) level = 0;
    if (level >= VIZ_HEAT_LEVELS) level = VIZ_HEAT_LEVELS - 1;
    uint32_t rgb;
    switch (ramp) {
    case VIZ_RAMP_MAGMA: rgb = magma[level]; break;
    case VIZ_RAMP_GREY: {
        const uint32_t v = 12u + (uint32_t)level * 240u / (VIZ_HEAT_LEVELS - 1);
        rgb = v << 16 | v << 8 | v;
        break;
    }
    case VIZ_RAMP_DIVERGE: rgb = diverge_rgb(level); break;
    default: rgb = cividis[level]; break;
    }
    return dimmed ? mix(rgb, 0x0b0e14, 0.62) : rgb;
}

int viz_ramp_256_count(viz_ramp ramp) { return list_256[ramp].n; }

int viz_ramp_256(viz_ramp ramp, int level, bool dimmed) {
    if (level < 0) level = 0;
    if (level >= VIZ_HEAT_LEVELS) level = VIZ_HEAT_LEVELS - 1;
    const int n = list_256[ramp].n;
    int i = level * n / VIZ_HEAT_LEVELS;
    if (dimmed) return 232 + level * 10 / VIZ_HEAT_LEVELS; /* dark greys: another hue, so dim is not mistaken for low */
    if (i >= n) i = n - 1;
    return list_256[ramp].at[i];
}

char viz_ramp_glyph(viz_ramp ramp, double t) {
    static const char up[] = " .:-=+*#%@", both[] = "O0o-, .:+*#";
    if (isnan(t)) return ' ';
    if (t < 0) t = 0;
    if (t > 1) t = 1;
    if (ramp == VIZ_RAMP_DIVERGE) return both[(int)(t * 10 + 0.5)];
    const int i = (int)(t * 10);
    return up[i > 9 ? 9 : i];
}

double viz_luminance(uint32_t rgb) {
    static const double weight[] = {0.2126, 0.7152, 0.0722};
    double sum = 0;
    for (int i = 0; i < 3; i++) {
        const double v = (double)(rgb >> (16 - 8 * i) & 255) / 255;
        sum += weight[i] * (v <= 0.04045 ? v / 12.92 : pow((v + 0.055) / 1.055, 2.4));
    }
    return sum;
}
