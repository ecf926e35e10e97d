/* term_direct.h -- a terminal description of our own, so that 24-bit colours need no package of terminal descriptions.
 *
 * ncurses (6.1 and later) reads a compiled description from TERMINFO=b64:..., and its colour sequences here use semicolons,
 * which every 24-bit terminal reads (the colon form is not). It holds what xterm, tmux and their kin have in common.
 * Made by `tic -x` and `infocmp -x -Q2` from:
 *
 *   moascope-direct|24-bit colours with semicolons on any xterm-like terminal,
 *       am, mir, msgr, xenl, AX, RGB,
 *       colors#0x1000000, cols#80, lines#24, pairs#0x10000, it#8,
 *       bel=^G, bold=\E[1m, dim=\E[2m, rev=\E[7m, smul=\E[4m, rmul=\E[24m, sitm=\E[3m, ritm=\E[23m,
 *       civis=\E[?25l, cnorm=\E[?25h, clear=\E[H\E[2J, cr=\r,
 *       cub=\E[%p1%dD, cub1=^H, cud=\E[%p1%dB, cud1=\n, cuf=\E[%p1%dC, cuf1=\E[C, cuu=\E[%p1%dA, cuu1=\E[A,
 *       cup=\E[%i%p1%d;%p2%dH, home=\E[H, hpa=\E[%i%p1%dG, vpa=\E[%i%p1%dd,
 *       ed=\E[J, el=\E[K, el1=\E[1K,
 *       smcup=\E[?1049h, rmcup=\E[?1049l, smkx=\E[?1h\E=, rmkx=\E[?1l\E>,
 *       sgr0=\E[m, op=\E[39;49m,
 *       sgr=\E[0%?%p1%t;7%;%?%p2%t;4%;%?%p3%t;7%;%?%p5%t;2%;%?%p6%t;1%;m,
 *       setab=\E[%?%p1%{8}%<%t4%p1%d%e48;2;%p1%{65536}%/%d;%p1%{256}%/%{255}%&%d;%p1%{255}%&%d%;m,
 *       setaf=\E[%?%p1%{8}%<%t3%p1%d%e38;2;%p1%{65536}%/%d;%p1%{256}%/%{255}%&%d;%p1%{255}%&%d%;m,
 *       kbs=^?, kcbt=\E[Z, kcub1=\EOD, kcud1=\EOB, kcuf1=\EOC, kcuu1=\EOA, kdch1=\E[3~, kend=\EOF, khome=\EOH,
 *       kich1=\E[2~, knp=\E[6~, kpp=\E[5~, kent=\EOM,
 *       kf1=\EOP, kf2=\EOQ, kf3=\EOR, kf4=\EOS, kf5=\E[15~, kf6=\E[17~, kf7=\E[18~, kf8=\E[19~, kf9=\E[20~, kf10=\E[21~, kf11=\E[23~, kf12=\E[24~, */
#ifndef TUI_TERM_DIRECT_H
#define TUI_TERM_DIRECT_H

#define TERM_DIRECT_NAME "moascope-direct"
#define TERM_DIRECT                                                                                          \
    "b64:HgJKAA8ADwBpAS4CbW9hc2NvcGUtZGlyZWN0fDI0LWJpdCBjb2xvdXJzIHdpdGggc2VtaWNvbG9ucyBvbiBhbnkgeHRlcm0tbGlrZSB0" \
    "ZXJtaW5hbAAAAQAAAQAAAAAAAAAAAQEAUAAAAAgAAAAYAAAA_____________________________________________________wAA" \
    "AAEAAAEA__8AAAIA_____wQADAAQABQA__8fADAAMgA2AD0A__8_AEYA__9KAP__________________TgBTAP__XAD_______9hAP__" \
    "ZgD_____awBvAP_______3gA__________________________9-AP_______4AA__-FAP__________iQCNAJMAlwCbAJ8ApQCrALEA" \
    "twC9AMEA___GAP__ygDPANQA________2ADcAOQA_____________________________________________-wA________9QD-AP__" \
    "BwH_______________________________8QAf_______xsB__________________________________________9XAf__________" \
    "_____________________________1sBXwH_____________________________________________________________________" \
    "________________________________________________________________YwFpAf__________________________________" \
    "_____________________________________________________________________________________________________28B" \
    "________________________________________________________________________dAH_____________________________" \
    "_____30B________________________ggH_____________________________________________________________________" \
    "_____________________________4gB2wEHAA0AG1tIG1sySgAbW0sAG1tKABtbJWklcDElZEcAG1slaSVwMSVkOyVwMiVkSAAKABtb" \
    "SAAbWz8yNWwACAAbWz8yNWgAG1tDABtbQQAbWzFtABtbPzEwNDloABtbMm0AG1s3bQAbWzRtABtbbQAbWz8xMDQ5bAAbWzI0bQB_ABtb" \
    "M34AG09CABtPUAAbWzIxfgAbT1EAG09SABtPUwAbWzE1fgAbWzE3fgAbWzE4fgAbWzE5fgAbWzIwfgAbT0gAG1syfgAbT0QAG1s2fgAb" \
    "WzV-ABtPQwAbT0EAG1s_MWwbPgAbWz8xaBs9ABtbJXAxJWRCABtbJXAxJWREABtbJXAxJWRDABtbJXAxJWRBABtbJWklcDElZGQAG1sw" \
    "JT8lcDEldDs3JTslPyVwMiV0OzQlOyU_JXAzJXQ7NyU7JT8lcDUldDsyJTslPyVwNiV0OzElO20AG1taABtPRgAbT00AG1syM34AG1sy" \
    "NH4AG1sxSwAbWzM5OzQ5bQAbWzNtABtbMjNtABtbJT8lcDElezh9JTwldDMlcDElZCVlMzg7MjslcDElezY1NTM2fSUvJWQ7JXAxJXsy" \
    "NTZ9JS8lezI1NX0lJiVkOyVwMSV7MjU1fSUmJWQlO20AG1slPyVwMSV7OH0lPCV0NCVwMSVkJWU0ODsyOyVwMSV7NjU1MzZ9JS8lZDsl" \
    "cDElezI1Nn0lLyV7MjU1fSUmJWQ7JXAxJXsyNTV9JSYlZCU7bQACAAAAAAACAAcAAQEAAAMAQVgAUkdCAA=="

#endif
